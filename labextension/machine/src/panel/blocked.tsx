import * as React from 'react';

import { age } from '../model/figures.ts';
import { plain } from '../model/plain.ts';
import type { Blocked } from '../model/wire.ts';
import { useClock, useShared } from './shared.ts';

const SHOWN = 100;

/** Outputs that the output firewall did not let through, and why. */
export const BlockedOutputs = React.memo(function BlockedOutputs(props: {
  blocked: readonly Blocked[];
}): React.ReactElement {
  const { trans } = useShared().shared;
  const now = useClock(10);
  const newest = [...props.blocked].sort((one, other) => other.time - one.time).slice(0, SHOWN);
  if (!newest.length) {
    return <p className="avm-faint">{trans.__('All outputs were let through.')}</p>;
  }
  return (
    <ul className="avm-list" tabIndex={0} aria-label={trans.__('Blocked outputs, newest first')}>
      {newest.map((one, place) => (
        <li key={place}>
          <div className="avm-line">
            <b>{plain(one.reason, 80)}</b>
            {one.count > 1 && <span className="avm-faint">×{one.count}</span>}
          </div>
          <div className="avm-guest">{plain(one.detail, 300)}</div>
          <div className="avm-faint">
            {trans.__('%1 ago', age(now - one.time))}
            {one.cell > 0 && ` · ${trans.__('run %1', one.cell)}`}
          </div>
        </li>
      ))}
    </ul>
  );
});
