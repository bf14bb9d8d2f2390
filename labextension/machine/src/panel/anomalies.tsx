import * as React from 'react';

import { age } from '../model/figures.ts';
import { plain } from '../model/plain.ts';
import type { Anomaly } from '../model/wire.ts';
import { useClock, useShared } from './shared.ts';

const SHOWN = 100;

/** What was unusual in the machine, what was done about it, and what its user can do. */
export const Anomalies = React.memo(function Anomalies(props: {
  anomalies: readonly Anomaly[];
  /** The machine now: others are named. */
  vm: string;
}): React.ReactElement {
  const { anomalies, vm } = props;
  const { trans } = useShared().shared;
  const now = useClock(10);
  const newest = [...anomalies].sort((one, other) => other.time - one.time).slice(0, SHOWN);
  return (
    <>
      <ul className="avm-list" tabIndex={0} aria-label={trans.__('Anomalies, newest first')}>
        {newest.map((one, place) => (
          <Row key={place} anomaly={one} isOther={one.vm !== vm} now={now} />
        ))}
      </ul>
      <p className="avm-faint">
        {trans.__(
          'What to do: see what runs in the machine and whom it talks to. If that is not what you wanted, deny the host, go back to a snapshot or stop the machine.'
        )}
      </p>
    </>
  );
});

function Row(props: { anomaly: Anomaly; isOther: boolean; now: number }): React.ReactElement {
  const { anomaly, isOther, now } = props;
  const { trans } = useShared().shared;
  const text = plain(anomaly.text, 300);
  const severities: Record<string, string> = {
    info: trans.__('of note'),
    warning: trans.__('suspicious'),
    critical: trans.__('most likely an attack')
  };
  const responses: Record<string, string> = {
    audit: trans.__('written down in the audit log'),
    note: trans.__('told in the notebook'),
    slow: trans.__('slowed down'),
    pause: trans.__('kept as a snapshot and stopped'),
    kill: trans.__('ended')
  };
  const isGrave = anomaly.severity !== 'info';
  return (
    <li>
      <div className="avm-line">
        <b>{plain(anomaly.rule, 64)}</b>
        <span className={isGrave ? 'avm-grave' : 'avm-faint'}>{severities[anomaly.severity] ?? ''}</span>
      </div>
      <div>
        {anomaly.claimed
          ? trans.__('The machine, by its own account, %1', text)
          : trans.__('The machine %1', text)}
        {anomaly.about && (
          <>
            {': '}
            <span className="avm-guest">{plain(anomaly.about, 253)}</span>
          </>
        )}
      </div>
      <div>{trans.__('What was done: %1', plain(anomaly.outcome, 300) || (responses[anomaly.response] ?? ''))}</div>
      <div className="avm-faint">
        {trans.__('%1 ago', age(now - anomaly.time))}
        {' · '}
        {trans.__('%1, threshold %2', figure(anomaly.value), figure(anomaly.threshold))}
        {isOther && ` · ${plain(anomaly.vm, 64)}`}
      </div>
    </li>
  );
}

function figure(value: number): string {
  return Number(value.toPrecision(4)).toLocaleString();
}
