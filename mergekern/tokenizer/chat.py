"""Chat templates: how a conversation is written as text, in the Jinja that transformers renders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mergekern.errors import CheckpointError
from mergekern.tokenizer.files import (
    CONFIG,
    NAMED_TEMPLATES,
    TEMPLATE,
    TEMPLATE_JSON,
    Files,
    json_bytes,
)

TEMPLATES = {
    # https://github.com/tatsu-lab/stanford_alpaca: the headings of its prompts
    "alpaca": """\
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '### Instruction:\\n' + message.content + '\\n\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '### Response:\\n' + message.content + eos_token + '\\n\\n' }}
    {%- else %}
        {{- message.content + '\\n\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '### Response:\\n' }}
{%- endif %}
""",
    # ChatML: <|im_start|>role, the content and <|im_end|> on lines of their own
    "chatml": """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    # EXAONE 3: a system turn is always there, and a user's turn ends with its line
    "exaone": """\
{%- if not messages or messages[0].role != 'system' %}
    {{- '[|system|][|endofturn|]\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '[|' + message.role + '|]' + message.content }}
    {{- '\\n' if message.role == 'user' else '[|endofturn|]\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[|assistant|]' }}
{%- endif %}
""",
    # Llama 3: the role in header tokens, two line ends, the content and <|eot_id|>
    "llama3": """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {{- message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    # Mistral instruct: user turns in [INST] brackets, a system prompt before the first one's text
    "mistral": """\
{{- bos_token }}
{%- set system = namespace(text='') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set system.text = message.content + '\\n\\n' %}
    {%- elif message.role == 'user' %}
        {{- '[INST] ' + system.text + message.content + ' [/INST]' }}
        {%- set system.text = '' %}
    {%- else %}
        {{- ' ' + message.content + eos_token }}
    {%- endif %}
{%- endfor %}
""",
}


def choose_template(setting: str, models: Sequence[Files]) -> str | None:
    """The template that a recipe's `chat_template` means; None when auto finds none.

    setting: auto (the one that most of the models have, the first of those that tie), the name of
             one, or a template written out
    """
    if setting == "auto":
        found = [text for text in map(own_template, models) if text is not None]
        return Counter(found).most_common(1)[0][0] if found else None
    return TEMPLATES.get(setting, setting)


def own_template(files: Files) -> str | None:
    """A model's default template, from where transformers looks for it first.

    Raises CheckpointError for one that is no text.
    """
    if TEMPLATE in files.content:
        try:
            return files.content[TEMPLATE].decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{files.where / TEMPLATE}: is no UTF-8 text: {error}") from error
    for name in (TEMPLATE_JSON, CONFIG):
        found = _default(files.read_json(name).get("chat_template"))
        if found is not None and not isinstance(found, str):
            raise CheckpointError(
                f"{files.where / name}: chat_template is {found!r:.80}, wanted a text, or a list "
                "of names and templates"
            )
        if found is not None:
            return found
    return None


def _default(template: Any) -> Any:
    """What a chat_template field says of conversations for which no template is named."""
    if isinstance(template, list):
        named = [each for each in template if isinstance(each, Mapping)]
        template = {each.get("name"): each.get("template") for each in named}
    return template.get("default") if isinstance(template, Mapping) else template


def with_template(files: Mapping[str, bytes], template: str) -> dict[str, bytes]:
    """Tokenizer files with this template and no other.

    It goes where new loaders look for it and where old ones do.
    """
    kept = {name: content for name, content in files.items() if not _is_template(name)}
    config: dict[str, Any] = json.loads(kept.get(CONFIG, b"{}"))
    kept[CONFIG] = json_bytes({**config, "chat_template": template})
    kept[TEMPLATE] = template.encode()
    if TEMPLATE_JSON in files:
        kept[TEMPLATE_JSON] = json_bytes({"chat_template": template})
    return kept


def _is_template(name: str) -> bool:
    return name in (TEMPLATE, TEMPLATE_JSON) or name.startswith(f"{NAMED_TEMPLATES}/")
