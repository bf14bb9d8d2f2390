import * as React from 'react';

import { bytes } from '../model/figures.ts';
import { ORIGIN, PRESENT, type Row } from '../model/lanes.ts';
import { plain } from '../model/plain.ts';
import type { Snapshot } from '../model/wire.ts';
import { Button } from './button.tsx';
import { useShared } from './shared.ts';
import { titleOf } from './tree.tsx';

/** How much of a cell is shown. */
const CODE = 2000;

interface Known {
  row: Row;
  rows: readonly Row[];
  doing: string;
  /** The machine runs. */
  isThere: boolean;
}

/** The row of the tree that is selected, and what can be done with it. */
export function Details(props: Known): React.ReactElement {
  const { row, rows, isThere } = props;
  const { trans } = useShared().shared;
  if (row.snapshot) {
    return <Selected {...props} snapshot={row.snapshot} />;
  }
  const text =
    row.id === ORIGIN
      ? trans.__('Where every machine of this image begins. “Start fresh” leads there.')
      : trans.__('It descends from: %1.', titleOf(rows[row.parent], isThere, trans));
  return <p className="avm-faint">{text}</p>;
}

function Selected(props: Known & { snapshot: Snapshot }): React.ReactElement {
  const { row, snapshot, rows, doing, isThere } = props;
  const isIdle = isThere && !doing;
  // The first row is the machine as it is now.
  const isBase = rows[rows[0].parent].id === row.id;
  const { store, actions, shared } = useShared();
  const { trans } = shared;
  const title = titleOf(row, isThere, trans);
  const facts: [string, string][] = [
    [trans.__('Id'), snapshot.id],
    [trans.__('Taken'), `${new Date(1000 * snapshot.created).toLocaleString()} (${plain(snapshot.kind, 40)})`],
    [trans.__('Size'), trans.__('%1; %2 of memory written', bytes(snapshot.size), bytes(snapshot.written))],
    [trans.__('Pause'), trans.__('%1 ms', snapshot.pause_ms.toFixed(0))]
  ];
  return (
    <div className="avm-details" role="group" aria-label={title}>
      <h3>{title}</h3>
      {snapshot.text && <p className="avm-guest">{plain(snapshot.text, 2000)}</p>}
      <dl className="avm-facts">
        {facts.map(([name, value]) => (
          <React.Fragment key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </React.Fragment>
        ))}
      </dl>
      {snapshot.cell.code && (
        <pre className="avm-code" tabIndex={0} aria-label={trans.__('The cell before it')}>
          {snapshot.cell.code.slice(0, CODE).split('\n').map(line => plain(line, 300)).join('\n')}
        </pre>
      )}
      {snapshot.busy && <p className="avm-faint">{trans.__('A cell was running: it goes on from there.')}</p>}
      <div className="avm-buttons">
        <Button
          className="jp-mod-styled jp-mod-warn"
          disabled={!!doing}
          onClick={() => void actions.rollback(store, snapshot.id)}
        >
          {trans.__('Go back …')}
        </Button>
        <Button disabled={!isIdle} onClick={() => void actions.label(store, snapshot)}>
          {trans.__('Label …')}
        </Button>
        <Button
          disabled={!isIdle || isBase}
          onClick={() => void actions.remove(store, snapshot)}
        >
          {trans.__('Remove …')}
        </Button>
      </div>
      {isThere && isBase && (
        <p className="avm-faint">
          {trans.__('The machine goes on from it: it can be removed once another one was taken or gone back to.')}
        </p>
      )}
      {isThere && <Compare row={row} rows={rows} />}
    </div>
  );
}

function Compare(props: { row: Row; rows: readonly Row[] }): React.ReactElement {
  const { row, rows } = props;
  const { store, actions, shared } = useShared();
  const { trans } = shared;
  const [chosen, choose] = React.useState(PRESENT);
  const [isAsking, ask] = React.useState(false);
  const others = rows.filter(one => one.id !== ORIGIN && one.id !== row.id);
  const other = others.find(one => one.id === chosen) ?? others[0];
  const compare = async (): Promise<void> => {
    ask(true);
    await actions.compare(store, row.id, other.id, [titleOf(row, true, trans), titleOf(other, true, trans)]);
    ask(false);
  };
  return (
    <form
      className="avm-line avm-compare"
      onSubmit={event => {
        event.preventDefault();
        void compare();
      }}
    >
      <select
        className="jp-mod-styled"
        aria-label={trans.__('Compare with')}
        value={other.id}
        onChange={event => choose(event.target.value)}
      >
        {others.map(one => (
          <option key={one.id} value={one.id}>
            {titleOf(one, true, trans)}
          </option>
        ))}
      </select>
      <Button type="submit" disabled={isAsking} aria-busy={isAsking}>
        {isAsking ? trans.__('Comparing …') : trans.__('Compare')}
      </Button>
    </form>
  );
}
