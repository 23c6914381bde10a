"""What whoever reads a number of an embedded benchmark has to know first: it compares with nothing published."""

NOTICES = {
    "mini": "mini, not comparable with published MLLMU numbers; real run: `--preset mllmu-10`",
    "mini-hard": "mini-hard, not comparable with published MLLMU numbers; real run: `--preset mllmu-10`",
    "mini-clear": "mini-clear, not comparable with published CLEAR numbers; real run: `--preset clear-10`",
}
