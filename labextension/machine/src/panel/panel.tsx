// The side panel: the machine under the notebook in front.

import { ReactWidget } from '@jupyterlab/ui-components';
import type { CommandRegistry } from '@lumino/commands';
import * as React from 'react';

import type { Store } from '../model/store.ts';
import type { IMachines } from '../tokens.ts';
import { Anomalies } from './anomalies.tsx';
import { BlockedOutputs } from './blocked.tsx';
import { Connections } from './connections.tsx';
import { Header } from './header.tsx';
import { Limits } from './limits.tsx';
import { Plots } from './plots.tsx';
import { Section } from './section.tsx';
import { Context, useChanges } from './shared.ts';
import { Snapshots } from './snapshots.tsx';
import { Nothing, State } from './state.tsx';

export class Panel extends ReactWidget {
  private readonly shared: IMachines;
  private readonly commands: CommandRegistry;

  constructor(shared: IMachines, commands: CommandRegistry) {
    super();
    this.shared = shared;
    this.commands = commands;
    this.id = 'agentvm-panel';
    this.addClass('avm-panel');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', shared.trans.__('Virtual machine'));
    shared.moved.connect(this.update, this);
  }

  dispose(): void {
    this.shared.moved.disconnect(this.update, this);
    super.dispose();
  }

  render(): React.ReactElement {
    const { shared, commands } = this;
    const { store } = shared;
    if (!store) {
      return <Nothing shared={shared} commands={commands} />;
    }
    return (
      <Context.Provider value={{ shared, actions: shared.actions, store }} key={store.kernel}>
        <Machine store={store} shared={shared} commands={commands} />
      </Context.Provider>
    );
  }
}

function Machine(props: { store: Store; shared: IMachines; commands: CommandRegistry }): React.ReactElement {
  const { store, commands } = props;
  const { trans } = props.shared;
  useChanges(store);
  const { machine, tree, phase } = store;
  const isThere = phase === 'running' && machine !== null;
  const isComing = phase === 'starting' || phase === 'restarting';
  const hasTree = tree !== null && (isThere || phase === 'ended' || (isComing && tree.snapshots.length > 0));
  return (
    <>
      {phase !== 'running' && <State commands={commands} />}
      {isThere && <Header machine={machine} doing={store.doing} />}
      {isThere && store.failure && (
        <div className="avm-warning" role="alert">
          {store.failure.message} {store.failure.hint}
        </div>
      )}
      {isThere && store.anomalies.length > 0 && (
        <Section title={trans.__('Anomalies')} count={store.anomalies.length} isAlarming={!!machine.anomalies}>
          <Anomalies anomalies={store.anomalies} vm={machine.vm ?? ''} />
        </Section>
      )}
      {isThere && (
        <Section title={trans.__('Resources')}>
          <Plots machine={machine} />
        </Section>
      )}
      {hasTree && (
        <Section title={trans.__('Snapshots')} count={tree.snapshots.length}>
          <Snapshots
            tree={tree}
            doing={store.doing || (isComing ? phase : '')}
            travelling={machine?.travelling}
            isThere={isThere}
            commands={commands}
          />
        </Section>
      )}
      {isThere && (
        <>
          <Section title={trans.__('Connections')} count={machine.network?.refused} isAlarming>
            <Connections network={machine.network ?? null} connections={store.connections} doing={store.doing} />
          </Section>
          <Section title={trans.__('Blocked outputs')} count={machine.blocked} isAlarming>
            <BlockedOutputs blocked={store.blocked} />
          </Section>
          <Section title={trans.__('Limits')} isClosed>
            <Limits limits={machine.limits ?? {}} doing={store.doing} />
          </Section>
        </>
      )}
    </>
  );
}
