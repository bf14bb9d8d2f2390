// The status bar: how the machine is, in a few words; a click opens the panel.

import { ReactWidget } from '@jupyterlab/ui-components';
import * as React from 'react';

import { bytes, percent } from './model/figures.ts';
import { useChanges } from './panel/shared.ts';
import type { Phase, Store } from './model/store.ts';
import type { Machine } from './model/wire.ts';
import type { IMachines } from './tokens.ts';

export class Status extends ReactWidget {
  private readonly shared: IMachines;
  private readonly open: () => void;

  constructor(shared: IMachines, open: () => void) {
    super();
    this.shared = shared;
    this.open = open;
    this.addClass('avm-status');
    shared.moved.connect(this.update, this);
  }

  dispose(): void {
    this.shared.moved.disconnect(this.update, this);
    super.dispose();
  }

  render(): React.ReactElement {
    const { store } = this.shared;
    return store ? <Words store={store} shared={this.shared} open={this.open} /> : <></>;
  }
}

function Words(props: { store: Store; shared: IMachines; open: () => void }): React.ReactElement {
  const { store, open } = props;
  const { trans } = props.shared;
  useChanges(store);
  const { machine, phase } = store;
  if (phase === 'foreign' || phase === 'loading' || phase === 'missing') {
    return <></>;
  }
  const states = {
    running: trans.__('VM'),
    starting: trans.__('VM starts'),
    restarting: trans.__('kernel restarts'),
    none: trans.__('no VM'),
    ended: trans.__('VM ended'),
    lost: trans.__('no connection'),
    failed: trans.__('VM unknown'),
    gone: trans.__('no kernel')
  };
  const held = { paused: trans.__('VM stopped'), slowed: trans.__('VM slowed down') };
  const state = phase === 'running' && machine?.held ? held[machine.held] : states[phase];
  const parts = [store.doing ? `${state}: ${store.doing} …` : state];
  const blocked = machine?.blocked ?? 0;
  const refused = machine?.network?.refused ?? 0;
  const unusual = machine?.anomalies ?? 0;
  if (phase === 'running' && machine) {
    if (machine.stats) {
      parts.push(percent(machine.stats.cpu_percent), bytes(machine.stats.memory_cost));
    }
    parts.push(machine.network?.mode ?? '');
  }
  const isEmulated = machine?.accelerator === 'tcg';
  return (
    <button
      className="avm-status-button"
      onClick={open}
      title={
        trans.__('The virtual machine under this notebook; click to see more.') +
        (isEmulated ? ` ${trans.__('It is emulated in software: no isolation is promised.')}` : '')
      }
    >
      <span className={`avm-dot avm-dot-${dot(phase, machine)}`} />
      {parts.filter(Boolean).join(' · ')}
      {blocked + refused > 0 && (
        <span className="avm-count avm-alarming">{trans.__('%1 blocked', blocked + refused)}</span>
      )}
      {unusual > 0 && (
        <span className="avm-count avm-alarming">{trans._n('%1 anomaly', '%1 anomalies', unusual)}</span>
      )}
    </button>
  );
}

/** Returns what the dot's colour stands for. */
function dot(phase: Phase, machine: Machine | null): string {
  if (phase === 'running' && machine?.held !== 'paused') {
    return machine?.accelerator === 'tcg' ? 'emulated' : 'running';
  }
  return phase === 'starting' || phase === 'restarting' ? 'starting' : 'not';
}
