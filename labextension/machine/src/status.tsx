// The status bar: how the machine is, in a few words; a click opens the panel.

import { ReactWidget } from '@jupyterlab/ui-components';
import * as React from 'react';

import { bytes, percent } from './model/figures.ts';
import { useChanges } from './panel/shared.ts';
import type { Store } from './model/store.ts';
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
    none: trans.__('no VM'),
    ended: trans.__('VM ended'),
    lost: trans.__('no connection'),
    failed: trans.__('VM unknown'),
    gone: trans.__('no kernel')
  };
  const parts = [store.doing ? `${states[phase]}: ${store.doing} …` : states[phase]];
  const blocked = machine?.blocked ?? 0;
  const refused = machine?.network?.refused ?? 0;
  if (phase === 'running' && machine) {
    if (machine.stats) {
      parts.push(percent(machine.stats.cpu_percent), bytes(machine.stats.memory_cost));
    }
    parts.push(machine.network?.mode ?? '');
  }
  const isEmulated = machine?.accelerator === 'tcg';
  const running = isEmulated ? 'emulated' : 'running';
  const dot = phase === 'running' ? running : phase === 'starting' ? 'starting' : 'not';
  return (
    <button
      className="avm-status-button"
      onClick={open}
      title={
        trans.__('The virtual machine under this notebook; click to see more.') +
        (isEmulated ? ` ${trans.__('It is emulated in software: no isolation is promised.')}` : '')
      }
    >
      <span className={`avm-dot avm-dot-${dot}`} />
      {parts.filter(Boolean).join(' · ')}
      {blocked + refused > 0 && (
        <span className="avm-count avm-alarming">{trans.__('%1 blocked', blocked + refused)}</span>
      )}
    </button>
  );
}
