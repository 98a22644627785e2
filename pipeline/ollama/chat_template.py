"""Examine a checkpoint's own chat template by letting it render known conversations.

The template is a Jinja program from the checkpoint; transformers runs it in Jinja's sandbox.
"""

from pathlib import Path
from typing import Any, Final

from pipeline.checkpoint.chat_rendering import render_chat
from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.ollama.chat_families import (
    PROBES,
    TOOLS,
    Conversation,
    GoTemplate,
    equivalent_go_template,
)

ANSWER: Final = "A1B2C3"
"""The text of an answer that no template contains."""


class ChatTemplate:
    """Render conversations with the chat template of the checkpoint in a directory."""

    def __init__(self, model_dir: Path) -> None:
        """Load the tokenizer. Raises InputError when there is none that loads."""
        self._tokenizer: Any = tokenizer_of(model_dir)

    def render(self, conversation: Conversation) -> str | None:
        """Render a conversation up to the next answer; return None when the template refuses it."""
        last = conversation.messages[-1]["role"]
        try:
            text = render_chat(
                self._tokenizer,
                conversation.messages,
                tools=list(TOOLS) if conversation.has_tools else None,
                add_generation_prompt=last != "assistant",
            )
        except Exception:  # a template is a program and can fail in any way
            return None
        return text if isinstance(text, str) else None

    def go_template(self) -> GoTemplate:
        """Return the Go template that renders the same, or the reason why there is none."""
        bos = self._tokenizer.bos_token or ""
        begins = self._tokenizer("a").input_ids[:1]
        return equivalent_go_template(
            {name: self.render(conversation) for name, conversation in PROBES.items()},
            bos=bos,
            adds_bos=begins == [self._tokenizer.bos_token_id],
        )

    def end_of_turn(self) -> str | None:
        """Return the special token that ends an assistant's answer; None when there is none."""
        messages = ({"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER})
        text = self.render(Conversation(messages))
        if text is None or ANSWER not in text:
            return None
        rest = text.partition(ANSWER)[2].lstrip()
        special = self._tokenizer.added_tokens_decoder.values()
        tokens = [token.content for token in special if token.special and token.content]
        return max((token for token in tokens if rest.startswith(token)), key=len, default=None)
