// What is shown where no machine is: why, and what to do about it.

import type { TranslationBundle } from '@jupyterlab/translation';
import type { CommandRegistry } from '@lumino/commands';
import * as React from 'react';

import { plain } from '../model/plain.ts';
import type { Phase, Store } from '../model/store.ts';
import type { Finding } from '../model/wire.ts';
import type { IMachines } from '../tokens.ts';
import { Button } from './button.tsx';
import { useShared } from './shared.ts';

const CHANGE_KERNEL = 'notebook:change-kernel';

/** What passes by itself. */
const WAITING: readonly Phase[] = ['loading', 'starting', 'restarting'];

interface Said {
  title: string;
  why: string;
  hint?: string;
}

/** Where there is no kernel to ask about. */
export function Nothing(props: { shared: IMachines; commands: CommandRegistry }): React.ReactElement {
  const { notebook, trans } = props.shared;
  if (!notebook) {
    const why = trans.__('This panel shows the virtual machine under the notebook in front.');
    return <Card said={{ title: trans.__('No notebook is open'), why, hint: trans.__('Open a notebook.') }} />;
  }
  const why = trans.__('A machine is started together with a kernel.');
  return (
    <Card said={{ title: trans.__('This notebook has no kernel'), why }}>
      <ChangeKernel commands={props.commands} trans={trans} />
    </Card>
  );
}

/** Where the kernel in front has no machine that runs. */
export function State(props: { commands: CommandRegistry }): React.ReactElement {
  const { store, actions, shared } = useShared();
  const { trans } = shared;
  const { phase } = store;
  const [isExamining, tell] = React.useState(false);
  const look = async (): Promise<void> => {
    tell(true);
    await store.examine();
    tell(false);
  };
  const canStart = phase === 'none' || phase === 'ended' || phase === 'failed';
  return (
    <Card said={said(store, trans)} isWaiting={WAITING.includes(phase)} doing={store.doing}>
      {(phase === 'foreign' || phase === 'gone') && <ChangeKernel commands={props.commands} trans={trans} />}
      {canStart && (
        <Button disabled={!!store.doing} onClick={() => void actions.restart(store)}>
          {trans.__('Start a machine')}
        </Button>
      )}
      {(phase === 'lost' || phase === 'failed' || phase === 'missing' || phase === 'gone') && (
        <Button onClick={() => store.refresh()}>
          {trans.__('Try again')}
        </Button>
      )}
      {canStart && (
        <Button disabled={isExamining} aria-busy={isExamining} onClick={() => void look()}>
          {isExamining ? trans.__('Examining …') : trans.__('Examine this host')}
        </Button>
      )}
      {canStart && store.host && <Findings findings={store.host.findings} trans={trans} />}
    </Card>
  );
}

function said(store: Store, trans: TranslationBundle): Said {
  const text = plain(store.machine?.text ?? '', 1000);
  const failure = store.failure;
  const all: Record<Phase, Said> = {
    loading: { title: trans.__('Looking for the machine …'), why: '' },
    running: { title: '', why: '' },
    starting: { title: trans.__('The machine starts …'), why: text },
    restarting: {
      title: trans.__('The kernel restarts …'),
      why: trans.__('Its machine ended with it; a fresh one starts with the kernel.')
    },
    foreign: {
      title: trans.__('This kernel does not run in a virtual machine'),
      why: trans.__('Its cells run on the host itself, with all that you may do there.'),
      hint: trans.__('Change to the kernel AgentVM to run them in a machine of their own.')
    },
    none: {
      title: trans.__('No machine runs under this notebook'),
      why: text || trans.__('The machine was stopped, or the supervisor, which runs the machines, is not there.'),
      hint: trans.__('Start a machine: the supervisor starts with it. If that fails, examine this host.')
    },
    ended: {
      title: trans.__('The machine has ended'),
      why: text || trans.__('What it had in memory is gone.'),
      hint: store.tree?.snapshots.length
        ? trans.__('Go back to a snapshot, or start a fresh machine.')
        : trans.__('Start a fresh machine.')
    },
    missing: {
      title: trans.__('The Jupyter server lacks the extension'),
      why: trans.__('It does not know this panel’s questions: agentvm-kernel is not installed where the server runs.'),
      hint: trans.__('Install it there, see that “jupyter server extension list” names it, and restart the server.')
    },
    lost: {
      title: trans.__('No connection'),
      why: trans.__('The Jupyter server does not answer.'),
      hint: trans.__('This panel goes on by itself when it does again.')
    },
    failed: {
      title: trans.__('The machine cannot be shown'),
      why: plain(failure?.message ?? '', 1000),
      hint: plain(failure?.hint ?? '', 1000)
    },
    gone: {
      title: trans.__('The kernel has ended'),
      why: trans.__('Its machine ended with it.'),
      hint: trans.__('Start the kernel again: it gets a fresh machine.')
    }
  };
  return all[store.phase];
}

function Card(props: {
  said: Said;
  isWaiting?: boolean;
  doing?: string;
  children?: React.ReactNode;
}): React.ReactElement {
  const { said, isWaiting, doing, children } = props;
  return (
    <div className="avm-card" role="status" aria-busy={!!isWaiting || !!doing}>
      {(isWaiting || doing) && <div className="avm-spinner" />}
      <h2>{said.title}</h2>
      {said.why && <p>{said.why}</p>}
      {said.hint && <p className="avm-hint">{said.hint}</p>}
      {doing && <p>{doing} …</p>}
      <div className="avm-buttons">{children}</div>
    </div>
  );
}

function ChangeKernel(props: { commands: CommandRegistry; trans: TranslationBundle }): React.ReactElement {
  const { commands, trans } = props;
  return (
    <Button onClick={() => void commands.execute(CHANGE_KERNEL)}>
      {trans.__('Change the kernel …')}
    </Button>
  );
}

function Findings(props: { findings: readonly Finding[]; trans: TranslationBundle }): React.ReactElement {
  const { findings, trans } = props;
  if (!findings.length) {
    return <p>{trans.__('Nothing was found that would hinder a machine on this host.')}</p>;
  }
  return (
    <ul className="avm-findings" aria-label={trans.__('What was found on this host')}>
      {findings.map(one => (
        <li key={one.title}>
          <b>{plain(one.title)}</b> {one.ok ? trans.__('(a machine can run nevertheless)') : ''}
          <div>{plain(one.detail, 1000)}</div>
          <div className="avm-hint">{plain(one.remedy, 1000)}</div>
        </li>
      ))}
    </ul>
  );
}
