import type { CommandRegistry } from '@lumino/commands';
import * as React from 'react';

import { bytes } from '../model/figures.ts';
import { layout, PRESENT, type Row } from '../model/lanes.ts';
import type * as wire from '../model/wire.ts';
import { activeCode } from '../commands.ts';
import { Button } from './button.tsx';
import { Details } from './details.tsx';
import { openMenu } from './menu.ts';
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
  commands: CommandRegistry;
}): React.ReactElement {
  const { tree, doing, travelling, isThere, commands } = props;
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
  const menu = React.useCallback(
    (of: Row, place: HTMLElement, x: number, y: number) => openMenu(commands, of, place, x, y),
    [commands]
  );
  const frame = useKeptFocus(row.id);
  return (
    <div ref={frame}>
      <div className="avm-buttons">
        <Button
          className="jp-mod-styled jp-mod-accept"
          disabled={!isThere || !!doing}
          onClick={() => void actions.snapshotWithLabel(store)}
        >
          {trans.__('Snapshot …')}
        </Button>
        <Button
          disabled={!isThere || !!doing}
          onClick={() => void actions.fork(store, activeCode(shared))}
        >
          {trans.__('Fork …')}
        </Button>
        <Button
          disabled={!isThere || !tree.snapshots.length || !!doing}
          onClick={() => void actions.prune(store)}
        >
          {trans.__('Prune …')}
        </Button>
        <label className="avm-switch">
          <input
            type="checkbox"
            checked={!!travelling}
            aria-disabled={!isThere || !!doing}
            onChange={event => isThere && !doing && void actions.travel(store, event.target.checked)}
          />
          {travelling === null ? trans.__('Time travel (not known)') : trans.__('Time travel')}
        </label>
      </div>
      <Tree layout={laid} selected={row.id} onSelect={select} onOpen={open} onMenu={menu} now={now} isThere={isThere} />
      <Details row={row} rows={laid.rows} doing={doing} isThere={isThere} />
      <p className="avm-faint">
        {trans.__('All your snapshots take %1 of %2.', bytes(tree.used), bytes(tree.quota))}
      </p>
    </div>
  );
});

/** Gives the tree the focus that went with the details of a row that is no more. */
function useKeptFocus(row: string): React.RefObject<HTMLDivElement> {
  const frame = React.useRef<HTMLDivElement>(null);
  const had = React.useRef(false);
  React.useEffect(() => {
    const look = (): void => void (had.current = !!frame.current?.contains(document.activeElement));
    document.addEventListener('focusin', look);
    return () => document.removeEventListener('focusin', look);
  }, []);
  React.useLayoutEffect(() => {
    if (had.current && document.activeElement === document.body) {
      frame.current?.querySelector<HTMLElement>('[role=treeitem][tabindex="0"]')?.focus({ preventScroll: true });
    }
  }, [row]);
  return frame;
}
