// The server extension's routes; see docs/server.md.

import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';
import type { TranslationBundle } from '@jupyterlab/translation';
import { Signal } from '@lumino/signaling';

import { Refusal, type Source } from './model/store.ts';
import type { Anomaly, Blocked, Comparison, Connection, Done, Host, Machine, Plan, Snapshot, Tree } from './model/wire.ts';

export interface Forking {
  count: number;
  code: string;
  randomness: 'diverge' | 'common';
  timeout?: number;
}

/** What came of forks: outputs as nbformat has them, past the output firewall. */
export type Forked = Done & { outputs: unknown[] };

export class Api implements Source {
  /** Tells of forks that this page had made, with what they showed. */
  readonly forked = new Signal<Api, { kernel: string; outputs: readonly unknown[] }>(this);
  private readonly settings: ServerConnection.ISettings;
  private readonly trans: TranslationBundle;

  constructor(settings: ServerConnection.ISettings, trans: TranslationBundle) {
    this.settings = settings;
    this.trans = trans;
  }

  host(examine = false): Promise<Host> {
    return this.ask('GET', `host${examine ? '?examine=1' : ''}`);
  }

  machine(kernel: string): Promise<Machine> {
    return this.ask('GET', at(kernel));
  }

  /** Returns what a notebook keeps of the machine in which its cells run. */
  async provenance(kernel: string): Promise<Record<string, unknown>> {
    return (await this.ask<{ kept: Record<string, unknown> }>('GET', at(kernel, 'provenance'))).kept;
  }

  snapshots(kernel: string): Promise<Tree> {
    return this.ask('GET', at(kernel, 'snapshots'));
  }

  async connections(kernel: string): Promise<Connection[]> {
    return (await this.ask<{ connections: Connection[] }>('GET', at(kernel, 'connections'))).connections;
  }

  async blocked(kernel: string): Promise<Blocked[]> {
    return (await this.ask<{ blocked: Blocked[] }>('GET', at(kernel, 'blocked'))).blocked;
  }

  async anomalies(kernel: string): Promise<Anomaly[]> {
    return (await this.ask<{ anomalies: Anomaly[] }>('GET', at(kernel, 'anomalies'))).anomalies;
  }

  snapshot(kernel: string, label = '', text = ''): Promise<Done> {
    return this.ask('POST', at(kernel, 'snapshots'), { ...(label && { label }), ...(text && { text }) });
  }

  label(kernel: string, snapshot: string, label: string): Promise<Snapshot> {
    return this.ask('PATCH', at(kernel, 'snapshots', snapshot), { label });
  }

  remove(kernel: string, snapshot: string): Promise<{ freed: number }> {
    return this.ask('DELETE', at(kernel, 'snapshots', snapshot));
  }

  prune(kernel: string, keep: number): Promise<{ removed: string[]; freed: number }> {
    return this.ask('POST', at(kernel, 'snapshots', 'prune'), { keep });
  }

  /** Compares two snapshots, or one with the present, which is called so. */
  compare(kernel: string, one: string, other: string): Promise<Comparison> {
    return this.ask('GET', at(kernel, 'snapshots', one, 'compare', other));
  }

  plan(kernel: string, to: string): Promise<Plan> {
    return this.ask('POST', at(kernel, 'rollback', 'plan'), { to });
  }

  rollback(kernel: string, to: string): Promise<Done> {
    return this.ask('POST', at(kernel, 'rollback'), { to });
  }

  async fork(kernel: string, forking: Forking): Promise<Forked> {
    const done = await this.ask<Forked>('POST', at(kernel, 'fork'), forking);
    this.forked.emit({ kernel, outputs: done.outputs ?? [] });
    return done;
  }

  /** Adopts a fork that a run of that number made, if it is of the last that were made. */
  adopt(kernel: string, fork: number, run: number): Promise<Done> {
    return this.ask('POST', at(kernel, 'adopt'), { fork, of: run });
  }

  network(kernel: string, change: { allow?: string[]; deny?: string[] }): Promise<Done> {
    return this.ask('PUT', at(kernel, 'network'), change);
  }

  limits(kernel: string, changes: Record<string, number | null>): Promise<Done> {
    return this.ask('PUT', at(kernel, 'limits'), changes);
  }

  timetravel(kernel: string, on: boolean): Promise<Done> {
    return this.ask('PUT', at(kernel, 'timetravel'), { on });
  }

  vm(kernel: string, what: 'restart' | 'stop'): Promise<Done> {
    return this.ask('POST', at(kernel, 'vm'), { do: what });
  }

  /** Lets a machine run on that was slowed down or stopped because of an anomaly. */
  async resume(kernel: string): Promise<void> {
    await this.ask('POST', at(kernel, 'resume'));
  }

  /** Says that this page looks at these kernels' machines. */
  async watch(kernels: string[]): Promise<void> {
    await this.ask('POST', 'watch', { kernels });
  }

  private async ask<T>(method: string, path: string, body?: object): Promise<T> {
    const url = URLExt.join(this.settings.baseUrl, 'agentvm/api', path);
    const init = { method, ...(body && { body: JSON.stringify(body) }) };
    let response: Response;
    let text: string;
    try {
      response = await ServerConnection.makeRequest(url, init, this.settings);
      text = await response.text();
    } catch {
      const message = this.trans.__('The Jupyter server does not answer.');
      throw new Refusal(0, { code: 'lost', message, hint: this.trans.__('The panel goes on by itself when it does again.') });
    }
    const answer = parsed(text);
    if (!response.ok || answer === undefined) {
      throw new Refusal(response.ok ? 502 : response.status, {
        code: said(answer, 'code'),
        message: said(answer, 'message') || this.trans.__('The Jupyter server answered: %1.', response.status),
        hint: said(answer, 'hint')
      });
    }
    return answer as T;
  }
}

function at(kernel: string, ...parts: string[]): string {
  return ['kernels', kernel, ...parts].map(encodeURIComponent).join('/');
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function said(answer: unknown, key: string): string {
  const value = (answer as Record<string, unknown> | null | undefined)?.[key];
  return typeof value === 'string' ? value : '';
}
