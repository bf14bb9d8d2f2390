// What is worth telling of a machine wherever its user looks: little of it, and of each machine each kind once.

import { REAL, type Clock } from './pace.ts';
import type { Store } from './store.ts';

/**
 * The machine has ended by itself; a first output was blocked; a first connection was refused; a first thing was
 * unusual; room runs out.
 */
export type Kind = 'ended' | 'blocked' | 'refused' | 'unusual' | 'full';

/** What is counted of a machine; it only grows. */
const COUNTED = ['blocked', 'refused', 'unusual'] as const;
type Counts = Record<(typeof COUNTED)[number], number>;

/** Milliseconds for which an end may be a change of machines: a restart, or a way back. */
const CHANGE = 3000;
/** Share of the room for snapshots from which on they take most of it. */
const MOST = 0.9;

export class News {
  private readonly store: Store;
  private readonly tell: (kind: Kind) => void;
  private readonly clock: Clock;
  private vm = '';
  private counts: Counts = { blocked: 0, refused: 0, unusual: 0 };
  private told = new Set<Kind>();
  private isFull: boolean | null = null;
  private isLooking = false;

  /** @param store Of the machine; until it is closed. */
  constructor(store: Store, tell: (kind: Kind) => void, clock: Clock = REAL) {
    this.store = store;
    this.tell = tell;
    this.clock = clock;
    store.listen(() => this.look());
  }

  private look(): void {
    const { machine, phase, tree } = this.store;
    if (phase === 'running' && machine?.vm) {
      const counts = {
        blocked: machine.blocked ?? 0,
        refused: machine.network?.refused ?? 0,
        unusual: machine.anomalies ?? 0
      };
      if (machine.vm === this.vm) {
        this.compare(counts);
      } else {
        // What there was before this page knew of it is no news.
        this.vm = machine.vm;
        this.told.clear();
      }
      this.counts = counts;
    } else if (phase === 'ended' && this.vm && !this.isLooking) {
      this.isLooking = true;
      this.clock.after(CHANGE, () => void this.lookAgain());
    }
    if (tree?.quota) {
      const isFull = tree.used > MOST * tree.quota;
      if (isFull && this.isFull === false) {
        this.tell('full');
      }
      this.isFull = isFull;
    }
  }

  private compare(counts: Counts): void {
    for (const kind of COUNTED) {
      if (counts[kind] > this.counts[kind]) {
        this.once(kind);
      }
    }
  }

  private async lookAgain(): Promise<void> {
    if (this.store.phase === 'ended' && !this.store.isClosed) {
      await this.store.check(); // nobody tells of one that is on its way
    }
    this.isLooking = false;
    if (this.store.phase === 'ended' && !this.store.isClosed && this.store.stopped !== this.vm) {
      this.once('ended');
    }
  }

  private once(kind: Kind): void {
    if (!this.told.has(kind)) {
      this.told.add(kind);
      this.tell(kind);
    }
  }
}
