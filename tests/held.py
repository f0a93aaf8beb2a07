"""A set of rows that are simply there."""

from mdlm.data.rows.base import Rows, RowSet


class Held(RowSet):
    """Rows in memory, given as such."""

    placed, dropped, inserted = 0, 0, {}
    is_padded, length = False, 0

    def __init__(self, rows: Rows):
        self.rows, self.length = rows, rows.tokens.shape[1]
        self.is_padded = not rows.is_valid.all()

    def __len__(self):
        return len(self.rows)

    def take(self, at):
        self.check(at)
        ids = self.rows.segment_ids
        return Rows(
            tokens=self.rows.tokens[at],
            loss_mask=self.rows.loss_mask[at],
            is_valid=self.rows.is_valid[at],
            segment_ids=None if ids is None else ids[at],
        )

    def loss_tokens(self):
        return int(self.rows.loss_mask.sum())
