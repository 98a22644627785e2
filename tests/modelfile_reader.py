"""A reader of Modelfiles that shares nothing with the writer.

It goes through the text character by character with the states of Ollama's own parser
(https://github.com/ollama/ollama/blob/main/parser/parser.go), so that a value means here what it
means there: quotes are not escapes, and a value ends at the first line end where they are closed.
"""

COMMANDS = {
    "from", "license", "template", "system", "adapter", "draft", "renderer", "parser",
    "parameter", "message", "requires",
}  # fmt: skip
INTEGERS = {
    "num_keep", "seed", "num_predict", "top_k", "repeat_last_n", "num_ctx", "num_batch", "num_gpu",
    "main_gpu", "num_thread", "draft_num_predict",
}  # fmt: skip
FLOATS = {
    "top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty",
    "frequency_penalty",
}  # fmt: skip


def read_modelfile(text: str) -> list[tuple[str, object]]:
    """Commands in their order; a parameter is named `parameter NAME` and has its typed value."""
    commands: list[tuple[str, object]] = []
    position = 0
    while position < len(text):
        if text[position] in " \t\r\n":
            position += 1
            continue
        if text[position] == "#":
            position = (text + "\n").index("\n", position)
            continue
        name, position = _word(text, position)
        assert name.lower() in COMMANDS, name
        parameter = ""
        if name.lower() == "parameter":
            parameter, position = _word(text, position + 1)
        value, position = _value(text, position + 1)
        if parameter:
            commands.append((f"parameter {parameter}", _typed(parameter, value)))
        else:
            commands.append((name.lower(), value))
    assert any(name == "from" for name, _ in commands), "no FROM line"
    return commands


def _word(text: str, position: int) -> tuple[str, int]:
    end = position
    while text[end] not in " \t":
        assert text[end].isalnum() or text[end] == "_", repr(text[position : end + 1])
        end += 1
    return text[position:end], end


def _value(text: str, position: int) -> tuple[str, int]:
    read = ""
    for end in range(position, len(text)):
        unquoted = _unquoted(read.strip())
        if text[end] in "\r\n" and unquoted is not None:
            return unquoted, end
        if text[end].isprintable() or text[end] in "\r\n\t":
            read += text[end]
    unquoted = _unquoted(read.strip())
    assert unquoted is not None, "unexpected end of file"
    return unquoted, len(text)


def _unquoted(text: str) -> str | None:
    for quote in ('"""', '"'):
        if text.startswith(quote):
            closed = len(text) >= 2 * len(quote) and text.endswith(quote)
            return text[len(quote) : -len(quote)] if closed else None
    return text


def _typed(name: str, value: str) -> object:
    if name in INTEGERS:
        return int(value)
    if name in FLOATS:
        return float(value)
    assert name == "stop", name
    return value
