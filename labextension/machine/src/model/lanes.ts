// Where each snapshot is drawn: newest above, one lane a branch, the way to the present always in the first lane.

import type { Snapshot } from './wire.ts';

/** What the machine is now, and the image's own state: rows that are no snapshots. */
export const PRESENT = 'present';
export const ORIGIN = '';

export interface Row {
  /** Of the snapshot, or PRESENT or ORIGIN. */
  id: string;
  snapshot: Snapshot | null;
  lane: number;
  /** Lanes that go by, from above to below. */
  passing: number[];
  /** Lanes that come from above and end in this row's; its own among them if something above descends from it. */
  joining: number[];
  /** It descends from something below. */
  descends: boolean;
  /** The present descends from it, or is it. */
  isOnPath: boolean;
  /** Rows above and below that a reader would call its newest child and its parent; itself where there is none. */
  child: number;
  parent: number;
}

export interface Layout {
  rows: Row[];
  /** How many lanes there are at the widest place. */
  width: number;
}

/** Returns the ids of a snapshot and of all that it descends from. */
export function path(snapshots: readonly Snapshot[], current: string): Set<string> {
  const parents = parentage(snapshots);
  const found = new Set<string>();
  for (let id: string | undefined = current; id && parents.has(id); id = parents.get(id)) {
    found.add(id);
  }
  return found;
}

/**
 * Lays out a notebook's snapshots.
 *
 * @param snapshots All of them, oldest first.
 * @param current The one that the machine descends from; empty for the image's own state.
 */
export function layout(snapshots: readonly Snapshot[], current: string): Layout {
  const parents = parentage(snapshots);
  const onPath = path(snapshots, current);
  const waiting: (string | null)[] = [parents.has(current) ? current : ORIGIN];
  const rows: Row[] = [row(PRESENT, null, 0, [], [], true, true)];
  let width = 1;
  for (const snapshot of [...snapshots].reverse()) {
    const { lane, joining } = arrive(waiting, snapshot.id);
    waiting[lane] = parents.get(snapshot.id) ?? ORIGIN;
    width = Math.max(width, waiting.length);
    const passing = lanes(waiting, one => one !== null).filter(one => one !== lane);
    rows.push(row(snapshot.id, snapshot, lane, passing, joining, true, onPath.has(snapshot.id)));
    trim(waiting);
  }
  rows.push(row(ORIGIN, null, 0, [], lanes(waiting, one => one === ORIGIN), false, true));
  relate(rows, parents, current);
  return { rows, width };
}

/** Returns the parent of each; one that is gone or not older counts as the image's own state. */
function parentage(snapshots: readonly Snapshot[]): Map<string, string> {
  const parents = new Map<string, string>();
  for (const { id, parent } of snapshots) {
    parents.set(id, parents.has(parent) ? parent : ORIGIN);
  }
  return parents;
}

/** Ends all lanes that wait for a snapshot, in the first of them; one that nothing waits for begins a lane. */
function arrive(waiting: (string | null)[], id: string): { lane: number; joining: number[] } {
  const joining = lanes(waiting, one => one === id);
  for (const lane of joining) {
    waiting[lane] = null;
  }
  if (joining.length) {
    return { lane: joining[0], joining };
  }
  const free = waiting.indexOf(null);
  return { lane: free < 0 ? waiting.length : free, joining };
}

function lanes(waiting: (string | null)[], accept: (one: string | null) => boolean): number[] {
  return waiting.flatMap((one, lane) => (accept(one) ? [lane] : []));
}

function trim(waiting: (string | null)[]): void {
  while (waiting.length > 1 && waiting[waiting.length - 1] === null) {
    waiting.pop();
  }
}

function row(
  id: string,
  snapshot: Snapshot | null,
  lane: number,
  passing: number[],
  joining: number[],
  descends: boolean,
  isOnPath: boolean
): Row {
  return { id, snapshot, lane, passing, joining, descends, isOnPath, child: -1, parent: -1 };
}

function relate(rows: Row[], parents: Map<string, string>, current: string): void {
  const places = new Map(rows.map((one, place) => [one.id, place]));
  rows.forEach((one, place) => {
    const parent = one.id === PRESENT ? current : parents.get(one.id);
    one.parent = one.id === ORIGIN ? place : (places.get(parent ?? ORIGIN) ?? rows.length - 1);
    if (one.parent !== place && rows[one.parent].child < 0) {
      rows[one.parent].child = place;
    }
  });
  rows.forEach((one, place) => {
    one.child = one.child < 0 ? place : one.child;
  });
}
