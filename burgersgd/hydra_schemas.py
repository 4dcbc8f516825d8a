"""The configuration classes in Hydra's store, with which Hydra checks what it composes from conf/ and command line."""

from __future__ import annotations

from typing import Any

from burgersgd.config import GROUPS, TrainConfig


def register_schemas() -> None:
    """Store every shipped class under schema/GROUP/CHOICE, to which the YAML files of conf/ refer.

    The imported classes of other packages become choices of their groups. A stored class is not stored again, because
    making the nodes of all classes takes a tenth of a second.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    store = ConfigStore.instance()

    def stored(group: str, name: str) -> Any:
        folder: Any = store.repo
        for part in [*group.split("/"), f"{name}.yaml"]:
            folder = folder.get(part, {})
        return OmegaConf.get_type(folder.node) if folder else None

    for group, choices in GROUPS.items():
        for name, cls in choices.items():
            is_shipped = name in choices.shipped
            group_path = f"schema/{group}" if is_shipped else group
            if stored(group_path, name) is cls:
                continue
            node = OmegaConf.structured(cls)
            if not is_shipped:  # conf/ has no YAML file for it
                node.name = name
            store.store(group=group_path, name=name, node=node)
    if stored("schema", "train") is TrainConfig:
        return
    root = OmegaConf.structured(TrainConfig)
    for group in GROUPS:
        root[group] = "???"  # the class follows from the choice in the defaults list
    store.store(group="schema", name="train", node=root)
