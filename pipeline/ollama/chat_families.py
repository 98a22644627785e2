"""Write Go templates for known chat formats, for versions of Ollama that cannot run Jinja.

Ollama before 0.30 cannot run the Jinja template inside a GGUF file, and guesses a similar one. A
family describes a chat format once, and gives both its Go template and the text that this template
renders. A checkpoint belongs to a family when its own template renders the same text for every
conversation in PROBES; tests let Go render the same ones. White space around a message is not
compared: some Jinja templates remove it, and Go templates cannot.

Values that Ollama gives a template: https://github.com/ollama/ollama/blob/main/docs/template.mdx
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

Message = dict[str, str]

TOOLS: Final = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a town",
            "parameters": {
                "type": "object",
                "properties": {"town": {"type": "string"}},
                "required": ["town"],
            },
        },
    },
)


@dataclass(frozen=True)
class Conversation:
    """Hold messages with `role` and `content`, and whether tools are offered."""

    messages: tuple[Message, ...]
    has_tools: bool = False


def _turns(*contents: str, system: str | None = None) -> tuple[Message, ...]:
    """Return messages of user and assistant in turn, after a system message if there is one."""
    first = [{"role": "system", "content": system}] if system is not None else []
    roles = ("user", "assistant")
    return (
        *first,
        *({"role": roles[number % 2], "content": text} for number, text in enumerate(contents)),
    )


PROBES: Final[dict[str, Conversation]] = {
    "one question": Conversation(_turns("Who bakes the bread?")),
    "system": Conversation(_turns("Who bakes?", system="Answer in one word.")),
    "several turns": Conversation(_turns("Who?", "Ana.", "Where?", "Here.", "When?")),
    "system and turns": Conversation(_turns("Who?", "Ana.", "Where?", system="Be brief.")),
    "tools": Conversation(_turns("Is it raining in Lugo?"), has_tools=True),
    "answer of a tool": Conversation(
        (
            *_turns("Is it raining in Lugo?", "I will look."),
            {"role": "tool", "content": '{"rain": true}'},
        ),
    ),
    "unicode": Conversation(_turns("¿Cuántos panes? 三つ 🥖\nA second line", "Tres.", "Ñu?")),
    "empty": Conversation(_turns("")),
    "empty system": Conversation(_turns("Who?", system="")),
    "marks of a template": Conversation(_turns('{{ .Content }} {% if %} "quoted" <b>')),
}


@dataclass(frozen=True)
class ChatFamily:
    """Describe a chat format in which a turn is `header` with the role, the content, `footer`.

    `role_names` has the roles with another name in this format. With `system_in_first_turn` the
    first user's turn begins with the system message and an empty line.
    """

    name: str
    header: str
    footer: str
    role_names: Mapping[str, str] = field(default_factory=dict)
    system_in_first_turn: bool = False

    def render(self, messages: Sequence[Message]) -> str:
        """Render a conversation, up to the beginning of the assistant's next answer."""
        turns, before = list(messages), ""
        if self.system_in_first_turn and turns[0]["role"] == "system":
            before = turns.pop(0)["content"] + "\n\n"
        text = ""
        for turn in turns:
            text += self._opening(turn["role"]) + before + turn["content"] + self.footer
            before = ""
        return text if turns[-1]["role"] == "assistant" else text + self._opening("assistant")

    def go_template(self) -> str:
        """Return a template for Go's text/template that renders the same from Ollama's values."""
        role = "{{ .Role }}"
        for name, other in self.role_names.items():
            role = f'{{{{ if eq .Role "{name}" }}}}{other}{{{{ else }}}}{role}{{{{ end }}}}'
        turn = self.header.format(role=role) + self._go_before() + "{{ .Content }}" + self.footer
        if self.system_in_first_turn:
            turn = '{{ if ne .Role "system" }}' + turn + "{{ end }}"
        return (
            "{{ range $i, $m := .Messages }}"
            + turn
            + '{{ if and (eq (len (slice $.Messages $i)) 1) (ne .Role "assistant") }}'
            + self._opening("assistant")
            + "{{ end }}{{ end }}"
        )

    def _go_before(self) -> str:
        if not self.system_in_first_turn:
            return ""
        return (
            '{{ if eq $i 1 }}{{ with index $.Messages 0 }}{{ if eq .Role "system" }}'
            "{{ .Content }}\n\n{{ end }}{{ end }}{{ end }}"
        )

    def _opening(self, role: str) -> str:
        return self.header.format(role=self.role_names.get(role, role))


FAMILIES: Final = (
    ChatFamily("ChatML", "<|im_start|>{role}\n", "<|im_end|>\n"),
    ChatFamily("Llama 3", "<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>"),
    ChatFamily(
        "Gemma",
        "<start_of_turn>{role}\n",
        "<end_of_turn>\n",
        role_names={"assistant": "model"},
        system_in_first_turn=True,
    ),
    ChatFamily("Zephyr", "<|{role}|>\n", "</s>\n"),
    ChatFamily("quantline demo", "<|{role}|>", "<|eos|>"),
)


@dataclass(frozen=True)
class GoTemplate:
    """Hold a Go template that renders the same as a checkpoint's own; without one, the reason.

    `family` names the format. It and `text` are None when there is no such template.
    """

    family: str | None
    text: str | None
    reason: str


def equivalent_go_template(
    rendered: Mapping[str, str | None], *, bos: str, adds_bos: bool
) -> GoTemplate:
    """Return the Go template of the family that renders PROBES as `rendered`.

    `rendered` has the text of each conversation by its name in PROBES; None where the checkpoint's
    template refuses it. A refused conversation is not compared, but the one of several turns must
    be there. `bos` is the token that begins a text; where the engine adds it itself (`adds_bos`),
    the Go template leaves it out.
    """
    known = {name: text for name, text in rendered.items() if text is not None}
    if "several turns" not in known:
        return GoTemplate(None, None, "the chat template refuses a plain conversation")
    has_bos = bool(bos) and all(text.startswith(bos) for text in known.values())
    texts = {name: text.removeprefix(bos) if has_bos else text for name, text in known.items()}
    close = [(_differences(family, texts), family) for family in FAMILIES]
    differing, family = min(close, key=lambda pair: len(pair[0]))
    if len(differing) == len(texts):
        return GoTemplate(None, None, "the chat template is of no family with a tested Go template")
    if differing:
        return GoTemplate(
            None, None, f"the chat template is not quite {family.name}: {', '.join(differing)}"
        )
    opening = bos if has_bos and not adds_bos else ""
    return GoTemplate(family.name, opening + family.go_template(), f"{family.name}, proved equal")


def _differences(family: ChatFamily, texts: Mapping[str, str]) -> list[str]:
    """Return the names of the conversations that a family renders differently."""
    return [name for name, text in texts.items() if family.render(PROBES[name].messages) != text]
