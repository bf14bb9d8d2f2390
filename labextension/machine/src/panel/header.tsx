import * as React from 'react';

import { duration } from '../model/figures.ts';
import { plain } from '../model/plain.ts';
import type { Machine } from '../model/wire.ts';
import { Button } from './button.tsx';
import { useClock, useShared } from './shared.ts';

/** What was done to a machine because of an anomaly, and the way to take it back. */
function Held(props: { held: 'slowed' | 'paused' }): React.ReactElement {
  const { store, actions, shared } = useShared();
  const { trans } = shared;
  const said = {
    slowed: trans.__('Something unusual was seen in this machine: it gets little CPU now.'),
    paused: trans.__(
      'Something unusual was seen in this machine: it was kept as a snapshot and stopped. Cells and what you have done here wait until it runs on.'
    )
  };
  return (
    <div className="avm-warning" role="alert">
      {said[props.held]}
      <div className="avm-buttons">
        <Button onClick={() => void actions.resume(store)}>{trans.__('Let it run on')}</Button>
      </div>
    </div>
  );
}

/** What machine it is, and what can be done with all of it. */
export function Header(props: { machine: Machine; doing: string }): React.ReactElement {
  const { machine, doing } = props;
  const { store, actions, shared } = useShared();
  const { trans } = shared;
  const now = useClock(5);
  const isEmulated = machine.accelerator === 'tcg';
  const has = [
    trans.__('%1 vCPU', machine.vcpus ?? 0),
    trans.__('%1 MiB memory', machine.memory_mib ?? 0),
    trans.__('%1 GB disk', machine.disk_gb ?? 0)
  ];
  const digest = (machine.digest ?? '').replace(/^[a-z0-9]+:/, '').slice(0, 12);
  const facts: [string, string, string?][] = [
    [trans.__('Profile'), plain(machine.profile ?? '')],
    [trans.__('Has'), has.join(', ')],
    [trans.__('Image'), `${plain(machine.image ?? '')} ${digest}`.trim(), machine.digest],
    [trans.__('Accelerator'), isEmulated ? trans.__('none (TCG)') : trans.__('hardware (KVM)')],
    [trans.__('Up for'), duration(now - store.born / 1000)]
  ];
  const does = doing || (machine.executing ? trans.__('a cell runs') : trans.__('idle'));
  return (
    <header className="avm-header">
      <div className="avm-title">
        <span className={`avm-badge ${machine.held === 'paused' ? 'avm-stopped' : ''}`}>
          {machine.held === 'paused' ? trans.__('stopped') : trans.__('running')}
        </span>
        <span role="status" className="avm-doing" aria-busy={!!doing}>
          {does}
          {doing && ' …'}
        </span>
        <span className="avm-faint avm-id">{machine.vm}</span>
      </div>
      {machine.held && <Held held={machine.held} />}
      {isEmulated && (
        <div className="avm-warning" role="note">
          {trans.__(
            'This host emulates the machine in software (TCG). QEMU promises no isolation then: run nothing hostile.'
          )}
        </div>
      )}
      <dl className="avm-facts">
        {facts.map(([name, value, more]) => (
          <React.Fragment key={name}>
            <dt>{name}</dt>
            <dd title={more}>{value}</dd>
          </React.Fragment>
        ))}
      </dl>
      <div className="avm-buttons">
        <Button disabled={!!doing} onClick={() => void actions.restart(store)}>
          {trans.__('Start fresh …')}
        </Button>
        <Button disabled={!!doing} onClick={() => void actions.stop(store)}>
          {trans.__('Stop …')}
        </Button>
      </div>
    </header>
  );
}
