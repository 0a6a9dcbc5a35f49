"""`check` on an open node: verifies the invariants of its roots, and repairs what it can."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from cache_agent.api.wire import CheckView, FindingView
from cache_agent.errors import Vanished
from cache_agent.fetch.repair import NodeRepairer
from cache_agent.store.checker import Checker, Violation, ViolationKind
from cache_agent.store.roots import Roots
from cache_agent.store.store import Store
from modelimage.digest import Digest
from modelimage.errors import Busy


@dataclass(frozen=True, slots=True)
class ConsistencyCheck:
    """Checks the roots of one node. `quick` skips file contents; `busy`: pulls are running."""

    roots: Roots
    repairer: NodeRepairer
    quick: bool
    busy: bool

    def run(self, *, repair: bool) -> CheckView:
        """Check every root; with `repair`, repair the findings and check again."""
        views = [self._prove(store, repair=repair) for store in self.roots.stores]
        return CheckView(
            root=str(self.roots.first.paths.root),
            files=sum(view.files for view in views),
            models=sum(view.models for view in views),
            bytes_read=sum(view.bytes_read for view in views),
            findings=[finding for view in views for finding in view.findings],
        )

    def _prove(self, store: Store, *, repair: bool) -> CheckView:
        checker = self._checker(store)
        findings = checker.run()
        left = findings
        if repair and findings:
            self._repair(store, findings)
            left = self._checker(store).run()
        every = (*findings, *(finding for finding in left if finding not in findings))
        return CheckView(
            root=str(store.paths.root),
            files=checker.files,
            models=checker.models,
            bytes_read=checker.bytes_read,
            findings=[_view(finding, repaired=finding not in left) for finding in every],
        )

    def _checker(self, store: Store) -> Checker:
        return Checker(store.paths, store.ledger, self.quick, busy=self.busy)

    def _repair(self, store: Store, findings: Sequence[Violation]) -> None:
        """Repair names first, then bytes, then links: each step relies on the ones before."""
        # A bitmap that vouches for wrong bytes would end the pull that believes it.
        store.settle(drop=[f.path for f in findings if f.kind is ViolationKind.PARTIAL])
        for finding in findings:
            if finding.kind is ViolationKind.WRITABLE:
                # Removed since it was found.
                with suppress(Vanished):
                    store.repairer.protect(finding.path)
        for digest in _digests(findings, ViolationKind.WRONG_BYTES, ViolationKind.UNREADABLE):
            self.repairer.repair(store, digest)
        # Read again: only the bytes can correct a row's size and chunk digests.
        for digest in _digests(findings, ViolationKind.LEDGER):
            stored = store.files.get(digest)
            if stored is not None:
                store.files.reverify(stored)
        self.repairer.restore_files(store)
        self.repairer.restore_descriptions(store)
        store.repairer.relist()
        store.repairer.mend_models()
        # Last: what is still broken is set aside for the next pull.
        store.repairer.drop_broken_models()
        # Of those that were set aside some names may be left that nothing holds any more.
        with suppress(Busy):
            store.settle()


def _digests(findings: Sequence[Violation], *kinds: ViolationKind) -> set[Digest]:
    return {f.digest for f in findings if f.kind in kinds and f.digest is not None}


def _view(finding: Violation, *, repaired: bool) -> FindingView:
    return FindingView(
        kind=finding.kind.value,
        path=str(finding.path),
        detail=finding.detail,
        advice=finding.kind.advice,
        repaired=repaired,
    )
