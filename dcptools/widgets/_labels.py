"""The labels of the fields, so that messages can name them."""

from __future__ import annotations

from dcptools._option import Value, in_python

LABELS = {
    "model_assets_dir": "Assets",
    "reference": "Reference",
    "family": "Family",
    "layout": "Layout",
    "root": "Root",
    "mode": "Mode",
    "adapter": "Adapter",
    "adapter_config_path": "LoRA config",
    "names": "Names",
    "tied": "Tied",
    "unexpected": "Unexpected",
    "allow_mismatch": "Allow a mismatch",
    "include": "Include",
    "exclude": "Exclude",
    "rename": "Rename",
    "dtype": "Write as",
    "overwrite": "Overwrite an existing model",
    "resume": "Continue a stopped run, and keep what is finished",
    "by": "Compare by",
    "cast": "Cast A to the dtypes of B first",
}


def by_label(name: str, value: Value = None) -> str:
    """What an option is called in the steps, or in Python if they have no field for it.

    >>> by_label("layout", "bare"), by_label("allow_mismatch", True), by_label("dtype_for")
    ('“Layout”: bare', '“Allow a mismatch”', 'dtype_for=')
    """
    if name not in LABELS:
        return in_python(name, value)
    return f"“{LABELS[name]}”" + (f": {value}" if isinstance(value, str) else "")
