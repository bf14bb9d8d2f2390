// Where an output stands: of the machine as it is, of a branch that was left, or of an earlier machine.

import type { Snapshot, Tree } from '../model/wire.ts';
import type { Ran } from './record.ts';

/** The runs up to a number, in one virtual machine. */
export interface Leg {
  vm: string;
  run: number;
}

/** What the supervisor says of the present. */
export interface Present extends Pick<Tree, 'current' | 'snapshots'> {
  /** The virtual machine. All that ran in it lies behind it. */
  vm: string;
  /** What lay behind it when it began, a leg for each virtual machine on the way. */
  way: readonly Leg[];
}

export type State = 'current' | 'left' | 'earlier';

export interface Standing {
  state: State;
  /** The snapshot that leads nearest to where the output was made, if it is still there. */
  branch: Snapshot | null;
}

export interface Ways {
  before: Snapshot | null;
  after: Snapshot | null;
}

/** A present with what can be looked up in it quickly. */
export class Place {
  readonly present: Present;
  private readonly byId: Map<string, Snapshot>;
  private readonly legs = new Map<string, number>();
  private readonly path: Set<string>;

  constructor(present: Present) {
    this.present = present;
    this.byId = new Map(present.snapshots.map(one => [one.id, one]));
    present.way.forEach(leg => this.legs.set(leg.vm, Math.max(leg.run, this.legs.get(leg.vm) ?? 0)));
    this.path = this.lineage(present.current);
  }

  /** Returns where the outputs of a run stand. */
  standing(ran: Ran): Standing {
    const branch = this.branch(ran);
    if (this.isBehind(ran)) {
      return { state: 'current', branch };
    }
    const isOfThisMachine = this.legs.has(ran.vm) || this.meets(branch?.id ?? '');
    return { state: isOfThisMachine ? 'left' : 'earlier', branch };
  }

  /** Returns the snapshots of the states before and after a run, where time travel took them and they are kept. */
  ways(ran: Ran): Ways {
    if (ran.host || ran.after === ran.base) {
      return { before: null, after: null };
    }
    return { before: this.byId.get(ran.base) ?? null, after: this.tookAfter(ran) };
  }

  /** Whether a run is one of those that made the machine what it is. */
  private isBehind(ran: Ran): boolean {
    if (ran.vm === this.present.vm || ran.run <= (this.legs.get(ran.vm) ?? 0)) {
      return true;
    }
    // A magic that took a snapshot: its run is later than the last that the snapshot has behind it.
    return ran.after !== ran.base && this.path.has(ran.after) && !this.wasFrozen(ran);
  }

  private wasFrozen(ran: Ran): boolean {
    const snapshot = this.byId.get(ran.after);
    return !!snapshot?.busy && snapshot.cell.run === ran.run;
  }

  private tookAfter(ran: Ran): Snapshot | null {
    const snapshot = this.byId.get(ran.after);
    return snapshot && !snapshot.busy && snapshot.cell.run === ran.run ? snapshot : null;
  }

  private branch(ran: Ran): Snapshot | null {
    return this.tookAfter(ran) ?? this.byId.get(ran.base) ?? null;
  }

  /** Whether a snapshot and the present one have an ancestor in common. */
  private meets(id: string): boolean {
    return id !== '' && [...this.lineage(id)].some(one => this.path.has(one));
  }

  private lineage(id: string): Set<string> {
    const ids = new Set<string>();
    for (let at = this.byId.get(id); at && !ids.has(at.id); at = this.byId.get(at.parent)) {
      ids.add(at.id);
    }
    return ids;
  }
}
