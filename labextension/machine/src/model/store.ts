// What a page knows of one kernel's machine, and what it does about it.

import { Pace, REAL, type Clock } from './pace.ts';
import { Series } from './series.ts';
import type { Anomaly, Blocked, Connection, Done, Event, Failure, Host, Machine, Tree } from './wire.ts';

/** What the panel shows: one of these at a time. */
export type Phase =
  | 'loading'
  | 'foreign'
  | 'none'
  | 'starting'
  /** The kernel's process has ended, and another one comes. */
  | 'restarting'
  | 'running'
  | 'ended'
  /** The Jupyter server has not got the extension. */
  | 'missing'
  /** The Jupyter server does not answer. */
  | 'lost'
  /** It answers with an error. */
  | 'failed'
  /** There is no such kernel any more. */
  | 'gone';

/** Where a store asks; an error that it throws is a Refusal. */
export interface Source {
  host(examine: boolean): Promise<Host>;
  machine(kernel: string): Promise<Machine>;
  snapshots(kernel: string): Promise<Tree>;
  connections(kernel: string): Promise<Connection[]>;
  blocked(kernel: string): Promise<Blocked[]>;
  anomalies(kernel: string): Promise<Anomaly[]>;
}

/** Why something was not done. */
export class Refusal extends Error {
  readonly status: number;
  readonly failure: Failure;

  /**
   * @param status Of the answer; 0 if there was none.
   * @param failure What it said; its code is empty if it was not the extension that answered.
   */
  constructor(status: number, failure: Failure) {
    super(failure.message);
    this.status = status;
    this.failure = failure;
  }
}

/** What the server is asked for, each by itself; the machine first, and the rest where it runs. */
const PARTS = ['machine', 'snapshots', 'connections', 'blocked', 'anomalies'] as const;
type Part = (typeof PARTS)[number];

/** Milliseconds between two questions of a kind. */
const PAUSE = 500;
/** Milliseconds after which it is asked again what has become of a kernel that is started anew: nobody tells. */
const AGAIN = 2000;

export class Store {
  readonly kernel: string;
  readonly series = new Series();
  phase: Phase = 'loading';
  machine: Machine | null = null;
  tree: Tree | null = null;
  connections: Connection[] = [];
  blocked: Blocked[] = [];
  anomalies: Anomaly[] = [];
  host: Host | null = null;
  /** When the machine began, milliseconds since 1970. */
  born = 0;
  /** What is being done, by the user's wish; empty if nothing is. */
  doing = '';
  /** The machine that the user has had stopped last. */
  stopped = '';
  isClosed = false;
  private readonly source: Source;
  private readonly clock: Clock;
  private readonly paces: Record<Part, Pace>;
  private readonly listeners = new Set<() => void>();
  private readonly restorers = new Set<(snapshot: string) => void>();
  private failures: Partial<Record<Part | 'host', Failure>> = {};
  private asked = each(() => 0);

  constructor(kernel: string, source: Source, clock: Clock = REAL) {
    this.kernel = kernel;
    this.source = source;
    this.clock = clock;
    this.paces = each(part => new Pace(() => void this.ask(part), PAUSE, clock));
  }

  /** What went wrong last with what is shown; null if nothing did. */
  get failure(): Failure | null {
    const { machine, host, ...parts } = this.failures;
    return machine ?? host ?? Object.values(parts)[0] ?? null;
  }

  /** Calls whenever anything changed; returns what ends that. */
  listen(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Calls with the snapshot whenever the machine went back or became a fork; returns what ends that. */
  onRestored(listener: (snapshot: string) => void): () => void {
    this.restorers.add(listener);
    return () => this.restorers.delete(listener);
  }

  /** Asks for everything anew. */
  refresh(): void {
    this.paces.machine.ask();
    if (this.phase === 'running') {
      this.refreshRest();
    }
  }

  /** Asks how the machine is, now; returns when that is known. */
  check(): Promise<void> {
    return this.ask('machine');
  }

  /** Takes what the server tells unasked. */
  hear(event: Event): void {
    if (event.what === 'stats') {
      if (event.stats) {
        this.measured(event.stats);
      }
    } else if (event.what === 'gone') {
      this.paces.machine.ask(); // the machine is; whether the kernel is, too, is to be seen
    } else if (event.what in this.paces) {
      this.paces[event.what].ask();
      if (event.what !== 'machine') {
        this.paces.machine.ask(); // it has how many there are
      }
      if (event.what === 'snapshots' && event.restored !== undefined && event.restored !== null) {
        this.restorers.forEach(listener => listener(event.restored ?? ''));
      }
    }
  }

  /**
   * Does what the user wishes; one thing at a time.
   *
   * @param name What it is, to be shown meanwhile.
   * @param act Does it.
   * @returns What came of it; a refusal is one that was not done, and says nothing where something else is being done.
   */
  async act<T extends Done>(name: string, act: () => Promise<T>): Promise<T | Done> {
    if (this.doing) {
      return refused({ code: 'busy', message: '', hint: '' });
    }
    this.doing = name;
    this.tell();
    try {
      return await act();
    } catch (error) {
      return refused(reason(error));
    } finally {
      this.doing = '';
      this.refresh();
      this.tell();
    }
  }

  /** Asks why this host cannot run machines. */
  async examine(): Promise<void> {
    try {
      this.host = await this.source.host(true);
      delete this.failures.host;
    } catch (error) {
      this.failures.host = reason(error);
    }
    this.tell();
  }

  close(): void {
    this.isClosed = true;
    this.listeners.clear();
    this.restorers.clear();
    Object.values(this.paces).forEach(pace => pace.stop());
  }

  private refreshRest(): void {
    PARTS.filter(part => part !== 'machine').forEach(part => this.paces[part].ask());
  }

  private async ask(part: Part): Promise<void> {
    const number = ++this.asked[part];
    try {
      const take = await this.answer(part);
      if (number === this.asked[part] && !this.isClosed) {
        take();
        delete this.failures[part];
        this.tell();
      }
    } catch (error) {
      if (number === this.asked[part] && !this.isClosed) {
        this.refuse(part, error);
      }
    }
  }

  /** Returns what takes the answer, so that one that was overtaken is dropped. */
  private async answer(part: Part): Promise<() => void> {
    if (part === 'machine') {
      const machine = await this.source.machine(this.kernel);
      return () => this.takeMachine(machine);
    }
    if (part === 'snapshots') {
      const tree = await this.source.snapshots(this.kernel);
      return () => void (this.tree = tree);
    }
    if (part === 'connections') {
      const connections = await this.source.connections(this.kernel);
      return () => void (this.connections = connections);
    }
    if (part === 'anomalies') {
      const anomalies = await this.source.anomalies(this.kernel);
      return () => void (this.anomalies = anomalies);
    }
    const blocked = await this.source.blocked(this.kernel);
    return () => void (this.blocked = blocked);
  }

  private takeMachine(machine: Machine): void {
    const isNew = this.phase !== 'running' || this.machine?.vm !== machine.vm;
    if (this.machine && this.machine.vm !== machine.vm) {
      this.series.clear();
    }
    this.machine = machine;
    this.born = this.clock.now() - 1000 * (machine.age ?? 0);
    this.phase = machine.state;
    if (machine.stats) {
      this.series.add(machine.stats);
    }
    if (isNew && machine.state === 'running') {
      this.refreshRest();
    }
    if (machine.state === 'restarting') {
      this.clock.after(AGAIN, () => this.isClosed || this.paces.machine.ask());
    }
  }

  private measured(stats: NonNullable<Machine['stats']>): void {
    this.series.add(stats);
    if (this.machine) {
      this.machine = { ...this.machine, stats, executing: stats.executing };
    }
    this.tell();
  }

  /** What only a part says of itself does not hide the machine. */
  private refuse(part: Part, error: unknown): void {
    const failure = reason(error);
    const status = error instanceof Refusal ? error.status : -1;
    this.failures[part] = failure;
    if (part !== 'machine' && status !== 0) {
      this.tell();
    } else if (status === 0) {
      this.become('lost');
    } else if (status === 404) {
      this.become(failure.code ? 'gone' : 'missing');
    } else {
      this.become('failed');
    }
  }

  private become(phase: Phase): void {
    this.phase = phase;
    this.tell();
  }

  private tell(): void {
    this.listeners.forEach(listener => listener());
  }
}

function each<T>(make: (part: Part) => T): Record<Part, T> {
  return Object.fromEntries(PARTS.map(part => [part, make(part)])) as Record<Part, T>;
}

function refused(error: Failure): Done {
  return { status: 'error', text: '', error, snapshot: '' };
}

function reason(error: unknown): Failure {
  if (error instanceof Refusal) {
    return error.failure;
  }
  return { code: 'front_end', message: error instanceof Error ? error.message : String(error), hint: '' };
}
