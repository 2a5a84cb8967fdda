"""What a workload's revisions tell: which is current, which came before, when people last changed it, what was left as bad.

Pure: decided from one reading of the workload and its revisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from actions.kubernetes.marks import Mark, read_mark
from actions.kubernetes.workloads import Revision, Workload, template_touched


@dataclass(frozen=True)
class History:
    """A workload with its revisions, oldest number first."""

    workload: Workload
    revisions: Sequence[Revision]

    @property
    def mark(self) -> Mark | None:
        """Our note on the workload."""
        return read_mark(self.workload.annotations)

    @property
    def newest(self) -> int:
        """The highest revision number; 0 without revisions."""
        return max((revision.number for revision in self.revisions), default=0)

    @property
    def current(self) -> Revision | None:
        """The revision of the present template; None while the controller has not made it."""
        return next((item for item in reversed(self.revisions) if item.template_digest == self.workload.template_digest), None)

    @property
    def previous(self) -> Revision | None:
        """The newest revision before the current one that is another release; restarts and our own adjustments are none."""
        current = self.current
        if current is None:
            return None
        release = self.release()
        earlier = [item for item in self.revisions if item.number < current.number and item.essence not in release]
        return earlier[-1] if earlier else None

    def release(self) -> frozenset[str]:
        """Return the essences of the present release: the present template's, and of those that are it but for our own adjustments."""
        own = self._own()
        return frozenset({self.workload.essence, *(own.same_release if own else ())})

    def _own(self) -> Mark | None:
        """Return our note if what runs now is what we made; somebody may have changed the template since."""
        mark = self.mark
        if mark is not None and any(item.number == mark.revision and item.template_digest == mark.template for item in self._run()):
            return mark
        return None

    def numbered(self, number: int) -> Revision | None:
        """Return the revision that has this number now."""
        return next((item for item in self.revisions if item.number == number), None)

    def with_uid(self, uid: str) -> Revision | None:
        """Return the revision kept by the object with this uid."""
        return next((item for item in self.revisions if item.uid == uid), None)

    def changed_at(self) -> datetime | None:
        """Return when a person or pipeline last changed what runs; our own changes and mere restarts don't count.

        A template's first revision object tells it exactly. When a template became current again nothing records
        the moment: then the answer is the earliest time it can't have been after, never a guess. None: can't be told.
        """
        if not self.workload.observed:
            return None
        run = self._run()
        if not run:
            return template_touched(self.workload)  # paused, say: changed, but no revision made of it yet
        own = self._own()
        if own is not None:
            return own.changed_at
        first = run[-1]
        return first.created if not first.again else self._again_at(first, is_current=len(run) == 1)

    def current_at(self) -> datetime | None:
        """Return when the present revision became current, by whomever: restarts and our own changes count. None: can't be told.

        Like `changed_at`, the earliest time it can't have been after where nothing records the moment.
        """
        current, mark = self.current, self.mark
        if current is None or not self.workload.observed:
            return None
        if mark is not None and current.number == mark.revision and current.template_digest == mark.template:
            return mark.at
        return self._again_at(current, is_current=True) if current.again else current.created

    def _run(self) -> list[Revision]:
        """Return the unbroken run of revisions of the present essence, newest first: the release and its restarts."""
        current = self.current
        run: list[Revision] = []
        for item in reversed([item for item in self.revisions if current is not None and item.number <= current.number]):
            if item.essence != self.workload.essence:
                break
            run.append(item)
        return run

    def _again_at(self, revision: Revision, *, is_current: bool) -> datetime | None:
        """Return the earliest time by which a revision had become current again."""
        if not revision.owns_pods:
            return revision.touched  # renumbering is the only reason to write a ControllerRevision
        left = [item for item in self.revisions if item.number < revision.number][-1:]
        bounds = [item.touched for item in left if item.replicas == 0]
        if is_current:
            bounds.append(template_touched(self.workload))
        return min((at for at in bounds if at is not None), default=None)

    def left_as_bad(self, target: Revision, *, now: datetime, window: timedelta) -> str | None:
        """Return why `target` counts as rolled away from within `window`, or None.

        It does when we noted it, or when a template older than it became current after it. Where no record proves that
        this was before the window, it counts as within.
        """
        for noted in self.mark.rolled_away if self.mark else ():
            if target.essence == noted.essence and now - noted.at < window:
                return f"this daemon rolled away from it at {noted.at.isoformat(timespec='seconds')}"
        for item in self.revisions:
            successor = self._older_successor(item) if item.essence == target.essence else None
            if successor is None:
                continue
            left = (item.touched if item.replicas == 0 else None) if item.owns_pods else successor.touched
            if left is None or now - left < window:
                when = f"at {left.isoformat(timespec='seconds')}" if left else "at a time nobody recorded"
                return f"revision {successor.number}, which is older, replaced it {when}"
        return None

    def _older_successor(self, revision: Revision) -> Revision | None:
        """Return a revision that became current after this one though it had been made before it: a rollback."""
        for item in self.revisions:
            older = item.created < revision.created or (item.created == revision.created and item.again)
            if item.number > revision.number and item.essence != revision.essence and older:
                return item
        return None
