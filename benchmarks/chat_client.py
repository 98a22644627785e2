"""Chat with a server through OpenAI's own client: `python chat_client.py URL QUESTION`.

It runs in the serving environment, which has the client. The server applies the chat template. The
answer and the number of tokens of the prompt are printed as JSON.
"""

import json
import sys

from openai import OpenAI

MAX_TOKENS = 48


def main(url: str, question: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    model = client.models.list().data[0].id
    chunks = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=MAX_TOKENS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    answer, prompt_tokens = "", None
    for chunk in chunks:
        if chunk.choices:
            answer += chunk.choices[0].delta.content or ""
        if chunk.usage:
            prompt_tokens = chunk.usage.prompt_tokens
    print(json.dumps({"answer": answer, "prompt_tokens": prompt_tokens}))


if __name__ == "__main__":
    main(*sys.argv[1:])
