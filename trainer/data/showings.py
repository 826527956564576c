"""How often each picture is shown in an epoch: its repeats, and shares of concepts where those are balanced."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from trainer.data.examples import Example


class Showings:
    """Showings of each picture in each epoch. Each bucket has as many in every epoch, so that epochs are of one length.

    Args:
        examples: the pictures.
        balanced: give each concept the same number of showings in an epoch, times its repeats: as many as the largest
            has pictures. Pictures of smaller ones are shown more often, and take turns where that does not come out even.
    """

    def __init__(self, examples: Sequence[Example], *, balanced: bool = False) -> None:
        self._repeats = [example.repeats for example in examples]
        # For each group of pictures of one concept and bucket: the pictures, and their showings in all.
        self._groups: list[tuple[list[int], int]] = []
        if balanced:
            of_concept: dict[str, list[int]] = defaultdict(list)
            for index, example in enumerate(examples):
                of_concept[example.concept].append(index)
            most = max(map(len, of_concept.values()), default=0)
            for members in of_concept.values():
                self._groups += _shared_out(examples, members, most * examples[members[0]].repeats)

    def counts(self, epoch: int) -> list[int]:
        """How often each picture is shown in the `epoch`-th epoch."""
        counts = list(self._repeats)
        for members, quota in self._groups:
            each, extra = divmod(quota, len(members))
            for place, index in enumerate(members):
                # The window of those that are shown once more moves on with each epoch.
                counts[index] = each + ((place - epoch * extra) % len(members) < extra)
        return counts


def _shared_out(examples: Sequence[Example], members: Sequence[int], quota: int) -> list[tuple[list[int], int]]:
    """A concept's showings on its buckets in proportion to their pictures, by the largest remainders."""
    of_bucket: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index in members:
        bucket = examples[index].bucket
        of_bucket[bucket.width, bucket.height].append(index)
    groups = [group for _, group in sorted(of_bucket.items())]
    quotas = [quota * len(group) // len(members) for group in groups]
    remainders = [quota * len(group) % len(members) for group in groups]
    for place in sorted(range(len(groups)), key=lambda place: (-remainders[place], place))[: quota - sum(quotas)]:
        quotas[place] += 1
    return list(zip(groups, quotas, strict=True))
