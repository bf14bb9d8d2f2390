import * as React from 'react';

import { bytes } from '../model/figures.ts';
import { layout, PRESENT } from '../model/lanes.ts';
import type * as wire from '../model/wire.ts';
import { activeCode } from '../commands.ts';
import { Details } from './details.tsx';
import { useClock, useShared } from './shared.ts';
import { Tree } from './tree.tsx';

/** The tree of snapshots, what is known of the one that is selected, and what can be done. */
export const Snapshots = React.memo(function Snapshots(props: {
  tree: wire.Tree;
  doing: string;
  /** A snapshot is taken after each cell; null if that is not known. */
  travelling: boolean | null | undefined;
  /** The machine runs. */
  isThere: boolean;
}): React.ReactElement {
  const { tree, doing, travelling, isThere } = props;
  const { store, actions, shared } = useShared();
  const { trans } = shared;
  const now = useClock(10);
  const [selected, select] = React.useState(PRESENT);
  const laid = React.useMemo(() => layout(tree.snapshots, tree.current), [tree]);
  const row = laid.rows.find(one => one.id === selected) ?? laid.rows[0];
  const open = React.useCallback(
    (id: string) => {
      if (id && id !== PRESENT) {
        void actions.rollback(store, id);
      }
    },
    [actions, store]
  );
  return (
    <>
      <div className="avm-buttons">
        <button
          className="jp-mod-styled jp-mod-accept"
          disabled={!isThere || !!doing}
          onClick={() => void actions.snapshotWithLabel(store)}
        >
          {trans.__('Snapshot …')}
        </button>
        <button
          className="jp-mod-styled"
          disabled={!isThere || !!doing}
          onClick={() => void actions.fork(store, activeCode(shared))}
        >
          {trans.__('Fork …')}
        </button>
        <button
          className="jp-mod-styled"
          disabled={!isThere || !tree.snapshots.length || !!doing}
          onClick={() => void actions.prune(store)}
        >
          {trans.__('Prune …')}
        </button>
        <label className="avm-switch">
          <input
            type="checkbox"
            checked={!!travelling}
            disabled={!isThere || !!doing}
            onChange={event => void actions.travel(store, event.target.checked)}
          />
          {travelling === null ? trans.__('Time travel (not known)') : trans.__('Time travel')}
        </label>
      </div>
      <Tree layout={laid} selected={row.id} onSelect={select} onOpen={open} now={now} isThere={isThere} />
      <Details row={row} rows={laid.rows} doing={doing} isThere={isThere} />
      <p className="avm-faint">
        {trans.__('All your snapshots take %1 of %2.', bytes(tree.used), bytes(tree.quota))}
      </p>
    </>
  );
});
