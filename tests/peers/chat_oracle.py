#!/usr/bin/env python3
"""What llama.cpp and Jinja make of conversations: the fixtures of src/text/chat_format_test.cpp.

Needs what tokenizer_oracle.py needs, and jinja2.
  chat_oracle.py MODEL.gguf OUT_IDS.json OUT_TEXTS.json
OUT_IDS: token ids by the default model's own template, on which Jinja and llama_chat_apply_template must agree.
OUT_TEXTS: texts of llama_chat_apply_template for the markers of every known format.
"""
import ctypes
import json
import sys

import gguf
import jinja2
import llama_cpp

from tokenizer_oracle import Peer

DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
CONVERSATIONS = [
    [("user", "Hello")], [("system", "You are terse."), ("user", "Hi")], [("user", "a"), ("assistant", "b"), ("user",
    "c")],
    [("user", "\n\n lead")], [("user", "trail  \n")], [("user", "")], [("system", ""), ("user", "x")],
    [("user", "  "), ("assistant", " "), ("user", "\n")], [("user", "Only a question?"), ("assistant", "done")],
    [("system", "s1"), ("user", "code:\n```\nx = 1\n```\n"), ("assistant", "ok 😀"), ("user", "数字 123"), ("assistant",
    "ét"),
     ("user", "don't")],
]
TEMPLATES = {
    "chatml": "<|im_start|>", "llama2": "[INST] {{ x }} [/INST]", "llama2 system": "[INST] <<SYS>>",
    "llama2 strip": "[INST] content.strip() <<SYS>>", "llama2 bos": "{{ bos_token + '[INST] ' }} <<SYS>>",
    "llama3": "<|start_header_id|>x<|end_header_id|>", "vicuna": "USER: x ASSISTANT: y",
    "orca": "SYSTEM: USER: x ASSISTANT: y",
    "gemma": "<start_of_turn>", "mistral v1": "{{ ' [INST] ' + system_message }}",
    "mistral v3": "[AVAILABLE_TOOLS][INST] x",
    "mistral v3 tekken": '[AVAILABLE_TOOLS]"[INST]"', "mistral v7": "[SYSTEM_PROMPT] [INST] x",
}


def apply(template, messages, open_assistant):
    chat = (llama_cpp.llama_chat_message * len(messages))(
        *[llama_cpp.llama_chat_message(role.encode(), content.encode()) for role, content in messages])
    size = 1 << 16
    text = ctypes.create_string_buffer(size)
    n = llama_cpp.llama_chat_apply_template(template.encode(), chat, len(messages), open_assistant, text, size)
    assert 0 <= n <= size, (template, n)
    return text.raw[:n].decode()


def write(path, cases):
    lines = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases)
    with open(path, "w", encoding="utf-8") as out:
        out.write(f'{{"cases":[\n{lines}\n]}}\n')


def main():
    model, ids_path, texts_path = sys.argv[1:]
    peer = Peer(model)
    chat_template = gguf.GGUFReader(model).fields["tokenizer.chat_template"].contents()
    jinja = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(chat_template)
    ids_cases, text_cases = [], []
    for conversation in CONVERSATIONS:
        for open_assistant in (True, False):
            messages = [{"role": role, "content": content} for role, content in conversation]
            case = {"messages": messages, "open_assistant": open_assistant}
            text = jinja.render(messages=messages, add_generation_prompt=open_assistant)
            has_system = conversation[0][0] == "system"
            with_system = conversation if has_system else [("system", DEFAULT_SYSTEM)] + conversation
            assert apply(chat_template, with_system, open_assistant) == text
            ids_cases.append({**case, "ids": peer.ids(text.encode(), True)})
            for name, template in TEMPLATES.items():
                text = apply(template, conversation, open_assistant)
                text_cases.append({"name": name, "template": template, **case, "text": text})
    write(ids_path, ids_cases)
    write(texts_path, text_cases)


if __name__ == "__main__":
    main()
