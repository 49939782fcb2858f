"""The settings that turn on defects of published protocols, so that their size can be seen; reports say so."""

TRUNCATE_GOLD = "eval.truncate_gold"
SWITCHES = {
    TRUNCATE_GOLD: "scored on what the model read, not on the full gold",
    "eval.reported": "selected on the reported split: expect less on new data",
    "data.tag_starts_only": "entities are their first words alone: this is no span score of whole entities",
    "data.pad_as_text": "padding was read as text: an answer depends on the rows beside it",
}
"""By name, what a report says where it is on."""
