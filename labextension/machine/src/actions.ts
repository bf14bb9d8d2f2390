// What a user can have done to a machine, with the questions that come before it and the news that come after it.

import { Dialog, Notification, showDialog, showErrorMessage } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';

import type { Api } from './api.ts';
import { ForkForm } from './dialogs/fork.tsx';
import { PlanView } from './dialogs/plan.tsx';
import { PruneForm } from './dialogs/prune.tsx';
import { SnapshotForm } from './dialogs/snapshot.tsx';
import { ComparisonView } from './dialogs/comparison.tsx';
import { bytes } from './model/figures.ts';
import { plain, sentence } from './model/plain.ts';
import { Refusal, type Store } from './model/store.ts';
import type { Done, Failure, Snapshot } from './model/wire.ts';

/** Milliseconds that news stay. */
const SHOWN = 5000;

export class Actions {
  private readonly api: Api;
  private readonly trans: TranslationBundle;

  constructor(api: Api, trans: TranslationBundle) {
    this.api = api;
    this.trans = trans;
  }

  /** Takes a snapshot; asks for a label if that is wished. */
  async snapshot(store: Store, label = '', text = ''): Promise<Done> {
    return this.act(store, this.trans.__('taking a snapshot'), () => this.api.snapshot(store.kernel, label, text));
  }

  async snapshotWithLabel(store: Store): Promise<void> {
    const body = new SnapshotForm(this.trans);
    const title = this.trans.__('Take a snapshot');
    const chosen = await this.question(title, body, this.trans.__('Take snapshot'));
    if (chosen && body.value) {
      await this.snapshot(store, body.value.label, body.value.text);
    }
  }

  /** Goes back to a snapshot, once the user knows what is lost. */
  async rollback(store: Store, to: string): Promise<Done | null> {
    const hasEnded = store.phase === 'ended' || store.phase === 'none';
    const [target, body] = hasEnded ? this.ended(store, to) : await this.planned(store, to);
    if (!target) {
      return null;
    }
    const name = called(target, this.trans);
    if (!(await this.question(this.trans.__('Go back to %1?', name), body, this.trans.__('Go back'), true))) {
      return null;
    }
    return this.move(store, this.trans.__('going back'), () => this.api.rollback(store.kernel, target.id));
  }

  async fork(store: Store, code: string): Promise<void> {
    const body = new ForkForm(code, this.trans);
    if (await this.question(this.trans.__('Run code in forks of this machine'), body, this.trans.__('Fork'))) {
      const forking = body.value;
      await this.act(store, this.trans.__('forking'), async () => {
        const done = await this.api.fork(store.kernel, forking);
        // What they showed is a table, which no line of news can hold.
        const text = this.trans._n('%1 fork has run.', '%1 forks have run.', forking.count);
        return done.error ? done : { ...done, text };
      });
    }
  }

  /**
   * Goes on in a fork; whether that was done.
   *
   * @param run Number of the run that made it: where others were made since, none is adopted.
   */
  async adopt(store: Store, fork: number, run: number): Promise<boolean> {
    const what = this.trans.__('What has happened in the machine since the forks were made is left behind.');
    if (!(await this.question(this.trans.__('Go on in fork %1?', fork), what, this.trans.__('Adopt'), true))) {
      return false;
    }
    const name = this.trans.__('adopting a fork');
    return (await this.move(store, name, () => this.api.adopt(store.kernel, fork, run))).status === 'ok';
  }

  async label(store: Store, snapshot: Snapshot): Promise<void> {
    const body = new SnapshotForm(this.trans, snapshot.label);
    if (await this.question(this.trans.__('Label a snapshot'), body, this.trans.__('Set label'))) {
      await this.change(store, this.trans.__('labelling'), async () => {
        await this.api.label(store.kernel, snapshot.id, body.value.label);
        return '';
      });
    }
  }

  async remove(store: Store, snapshot: Snapshot): Promise<void> {
    const what = this.trans.__(
      'Remove %1? What descends from it stays. This cannot be undone.',
      called(snapshot, this.trans)
    );
    if (await this.question(this.trans.__('Remove a snapshot'), what, this.trans.__('Remove'), true)) {
      await this.change(store, this.trans.__('removing'), async () => {
        const { freed } = await this.api.remove(store.kernel, snapshot.id);
        return [this.trans.__('Removed.'), this.trans.__('%1 are free again.', bytes(freed))].join(' ');
      });
    }
  }

  async prune(store: Store): Promise<void> {
    const body = new PruneForm(this.trans);
    if (await this.question(this.trans.__('Remove old snapshots'), body, this.trans.__('Remove'), true)) {
      await this.change(store, this.trans.__('pruning'), async () => {
        const { removed, freed } = await this.api.prune(store.kernel, body.value);
        const { length } = removed;
        const text = [
          this.trans._n('Removed %1 snapshot.', 'Removed %1 snapshots.', length),
          this.trans.__('%1 are free again.', bytes(freed))
        ];
        return text.join(' ');
      });
    }
  }

  async compare(store: Store, one: string, other: string, names: [string, string]): Promise<void> {
    const title = this.trans.__('What differs');
    const found = await this.found(() => this.api.compare(store.kernel, one, other));
    if (found) {
      const body = new ComparisonView(found, names, this.trans);
      await showDialog({ title, body, buttons: [Dialog.okButton({ label: this.trans.__('Close') })] });
    }
  }

  async allow(store: Store, host: string): Promise<void> {
    await this.act(store, this.trans.__('allowing'), () => this.api.network(store.kernel, { allow: [host] }));
  }

  async deny(store: Store, host: string): Promise<void> {
    await this.act(store, this.trans.__('denying'), () => this.api.network(store.kernel, { deny: [host] }));
  }

  async limit(store: Store, name: string, value: number | null): Promise<void> {
    await this.act(store, this.trans.__('setting limits'), () => this.api.limits(store.kernel, { [name]: value }));
  }

  async travel(store: Store, on: boolean): Promise<void> {
    await this.act(store, this.trans.__('switching time travel'), () => this.api.timetravel(store.kernel, on));
  }

  async restart(store: Store): Promise<void> {
    const what = this.trans.__(
      'The machine, with all that it has in memory and on disk, is thrown away. Snapshots and the notebook stay.'
    );
    const isThere = store.phase === 'running';
    const title = this.trans.__('Start a fresh machine?');
    if (!isThere || (await this.question(title, what, this.trans.__('Start fresh'), true))) {
      await this.act(store, this.trans.__('starting a machine'), () => this.api.vm(store.kernel, 'restart'));
    }
  }

  async stop(store: Store): Promise<void> {
    const what = this.trans.__(
      'The machine, with all that it has in memory and on disk, is given back. Snapshots and the notebook stay.'
    );
    if (await this.question(this.trans.__('Stop the machine?'), what, this.trans.__('Stop'), true)) {
      store.stopped = store.machine?.vm ?? '';
      await this.act(store, this.trans.__('stopping the machine'), () => this.api.vm(store.kernel, 'stop'));
    }
  }

  /** Lets a machine run on that was held because of an anomaly; whatever else waits for it goes on then. */
  async resume(store: Store): Promise<void> {
    await this.found(() => this.api.resume(store.kernel));
    store.refresh();
  }

  private async planned(store: Store, to: string): Promise<[Snapshot | undefined, Dialog.Body<unknown>]> {
    const plan = await this.found(() => this.api.plan(store.kernel, to));
    return plan ? [plan.target, new PlanView(plan, this.trans)] : [undefined, ''];
  }

  /** Nothing more can be lost where no machine runs, and nothing is planned. */
  private ended(store: Store, to: string): [Snapshot | undefined, Dialog.Body<unknown>] {
    const what = this.trans.__('The machine has ended. A fresh one goes on from the snapshot.');
    return [store.tree?.snapshots.find(one => one.id === to), what];
  }

  private async act(store: Store, name: string, act: () => Promise<Done>): Promise<Done> {
    const busy = this.trans.__('Still busy: %1. Try again when it has ended.', store.doing);
    const done = await store.act(name, act);
    await this.news(done, busy);
    return done;
  }

  /** Does what leads to another machine; what that one does not have is told until it was read. */
  private async move(store: Store, name: string, move: () => Promise<Done>): Promise<Done> {
    const done = await this.act(store, name, move);
    const rest = done.text.trim().split('\n').slice(1).join(' ');
    if (done.status === 'ok' && rest) {
      Notification.warning(plain(rest, 500), { autoClose: false });
    }
    return done;
  }

  private async change(store: Store, name: string, change: () => Promise<string>): Promise<void> {
    await this.act(store, name, async () => ({ status: 'ok', text: await change(), error: null, snapshot: '' }));
  }

  private async news(done: Done, busy: string): Promise<void> {
    if (done.status === 'error') {
      const failure = done.error ?? { code: '', message: done.text, hint: '' };
      await this.failed({ ...failure, message: failure.message || busy });
    } else if (done.text.trim()) {
      Notification.success(plain(done.text.trim().split('\n')[0], 140), { autoClose: SHOWN });
    }
  }

  private async found<T>(ask: () => Promise<T>): Promise<T | null> {
    try {
      return await ask();
    } catch (error) {
      if (!(error instanceof Refusal)) {
        throw error;
      }
      await this.failed(error.failure);
      return null;
    }
  }

  private async failed(failure: Failure): Promise<void> {
    const message = [failure.message, failure.hint].filter(Boolean).map(one => sentence(plain(one, 1000))).join(' ');
    await showErrorMessage(this.trans.__('That was not done'), message);
  }

  private async question(title: string, body: Dialog.Body<unknown>, label: string, isGrave = false): Promise<boolean> {
    const button = isGrave ? Dialog.warnButton({ label }) : Dialog.okButton({ label });
    const cancel = Dialog.cancelButton({ label: this.trans.__('Cancel') });
    const buttons = [cancel, button];
    // The Enter key alone shall lose nothing.
    const defaultButton = isGrave ? 0 : 1;
    const { button: chosen } = await showDialog({ title, body, buttons, defaultButton, focusNodeSelector: 'input' });
    return chosen.accept;
  }
}

/** Returns what a snapshot is called in a sentence. */
export function called(snapshot: Snapshot, trans: TranslationBundle): string {
  return snapshot.label ? `“${plain(snapshot.label, 64)}”` : trans.__('snapshot %1', snapshot.id.slice(0, 6));
}
