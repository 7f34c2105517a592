"""The steps from checkpoint to model as widgets, and all of them in one :class:`Wizard`.

Each step works alone in a cell, and its attributes are the core's own values::

    from dcptools import widgets
    w = widgets.Wizard("checkpoints/step-100")   # click through it
    w.plan, w.report                             # the values, for the next cell

Nothing is computed here: the steps call ``read``, ``preview``, ``load_model``, ``plan`` and ``write``. The tables are
built on anywidget (``table.js``), everything else on ipywidgets.
"""

try:
    import ipywidgets as _ipywidgets  # noqa: F401
except ImportError as error:
    raise ImportError(f"{error}\nThe widgets need the notebook extra: pip install 'dcptools[notebook]'") from None

from dcptools.widgets._compare import Compare
from dcptools.widgets._convert import Convert
from dcptools.widgets._inspect import Inspect
from dcptools.widgets._mapping import Mapping
from dcptools.widgets._open import Open
from dcptools.widgets._result import Result
from dcptools.widgets._shards import Shards
from dcptools.widgets._try import Try
from dcptools.widgets._wizard import Wizard

__all__ = ["Compare", "Convert", "Inspect", "Mapping", "Open", "Result", "Shards", "Try", "Wizard"]
