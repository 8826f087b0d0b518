"""Where steps are computed. ``base`` is the contract; the implementations know nothing of scheduling."""
