// The machines that this page knows: one store per kernel, told of by the server's events.

import type { Event as ServerEvent, ServiceManager } from '@jupyterlab/services';
import type { IDisposable } from '@lumino/disposable';
import { Signal } from '@lumino/signaling';

import type { Api } from './api.ts';
import { Store } from './model/store.ts';
import type { Event } from './model/wire.ts';

/** The server extension's events; see agentvm_kernel/server/news.py. */
const SCHEMA = 'urn:agentvm-kernel:machine';
/** Milliseconds between two signs of life; the server forgets a page after sixty seconds. */
const SIGN = 20_000;

export class Machines implements IDisposable {
  readonly api: Api;
  isDisposed = false;
  private readonly manager: ServiceManager.IManager;
  /** Tells of a store that was made. */
  readonly taken = new Signal<Machines, Store>(this);
  readonly stores = new Map<string, { store: Store; users: number }>();
  private readonly timer: number;

  constructor(api: Api, manager: ServiceManager.IManager) {
    this.api = api;
    this.manager = manager;
    manager.events.stream.connect(this.hear);
    document.addEventListener('visibilitychange', this.sign);
    this.timer = window.setInterval(this.sign, SIGN);
  }

  /** Returns the store of a kernel; who took it gives it back. */
  take(kernel: string): Store {
    const held = this.stores.get(kernel) ?? { store: new Store(kernel, this.api), users: 0 };
    held.users += 1;
    if (!this.stores.has(kernel)) {
      this.stores.set(kernel, held);
      this.taken.emit(held.store);
      held.store.refresh();
      void this.watch();
    }
    return held.store;
  }

  /** Gives a store back; the last to do so closes it. */
  giveBack(store: Store): void {
    const held = this.stores.get(store.kernel);
    if (held && --held.users === 0) {
      held.store.close();
      this.stores.delete(store.kernel);
    }
  }

  dispose(): void {
    this.isDisposed = true;
    clearInterval(this.timer);
    document.removeEventListener('visibilitychange', this.sign);
    this.manager.events.stream.disconnect(this.hear);
    this.stores.forEach(({ store }) => store.close());
    this.stores.clear();
  }

  private readonly hear = (_: unknown, emission: ServerEvent.Emission): void => {
    if (emission.schema_id === SCHEMA) {
      const event = emission as unknown as Event;
      this.stores.get(event.kernel_id)?.store.hear(event);
    }
  };

  /** Events may have been missed while the page was hidden or the server away: then all is asked for again. */
  private readonly sign = (): void => {
    if (document.visibilityState === 'visible') {
      void this.watch();
      this.stores.forEach(({ store }) => store.refresh());
    }
  };

  private async watch(): Promise<void> {
    const kernels = [...this.stores.keys()];
    if (kernels.length && document.visibilityState === 'visible') {
      // Stores say themselves if the server does not answer.
      await this.api.watch(kernels).catch(() => undefined);
    }
  }
}
