// A table that is wider than the page scrolls in a box of its own; some browsers give it no stop for the Tab key.
document$.subscribe(() => {
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap")) box.tabIndex = 0;
});
