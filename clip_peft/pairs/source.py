"""`--data captions.csv`: pairs of picture and caption, with the options of their format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft_data.names import named
from peft_data.options import takes
from peft_data.pairs import PairData, open_pairs, pair_formats

from peft_core.jobs.data import DECODING, Data, common


class PairSource(Data):
    """`--data captions.csv --data.caption_column title`: the options are those of the format's `load`, and `common`."""

    @classmethod
    def accepts(cls, name: str) -> Callable:
        path = Path(name).expanduser()
        loads = [
            module.load for module in pair_formats()
            if named(name, module) or (hasattr(module, "claims") and module.claims(path))
        ]  # fmt: skip
        loads = loads or [module.load for module in pair_formats() if hasattr(module, "claims")]

        @takes(common, *loads, but=("name",))
        def options(**given: Any) -> None:
            """Options of the pairs."""

        return options

    def absolute(self) -> PairSource:
        """The same with its path made absolute, so that it can be opened from another folder later."""
        options, name = dict(self.options), self.name
        if options.get("root"):
            options["root"] = str(Path(options["root"]).expanduser().absolute())
        elif not any(named(name, module) for module in pair_formats()):
            path = Path(name).expanduser()
            name = str(path.absolute()) if path.exists() or path.suffix == ".tar" else name
        return PairSource(name, options)

    def open(self) -> PairData:  # type: ignore[override]
        options = {key: value for key, value in self.options.items() if key not in DECODING and value is not None}
        return open_pairs(self.name, **options)
