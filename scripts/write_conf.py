"""Writes the YAML files of conf/ and docs/keys.md from the classes of settings: python scripts/write_conf.py."""

from __future__ import annotations

import keys_page

from burgersgd.conf_text import conf_text
from burgersgd.config import CONF_DIR, GROUPS, PRESETS

for group, choices in GROUPS.items():
    for choice in choices.shipped:
        if choice not in PRESETS.get(group, ()):
            path = CONF_DIR / group / f"{choice}.yaml"
            path.write_text(conf_text(choices[choice], choice), encoding="utf-8")
keys_page.write()
