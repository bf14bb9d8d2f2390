import assert from 'node:assert/strict';
import { test } from 'node:test';

import { layout, ORIGIN, path, PRESENT, type Row } from '../src/model/lanes.ts';
import type { Snapshot } from '../src/model/wire.ts';

function snapshot(id: string, parent: string): Snapshot {
  const cell = { run: 0, count: 0, code: '' };
  return {
    ...{ id, parent, label: '', text: '', kind: 'manual', created: 0, size: 0, written: 0 },
    ...{ cell, busy: false, pause_ms: 0, stored: true }
  };
}

function tree(...edges: [string, string][]): Snapshot[] {
  return edges.map(([id, parent]) => snapshot(id, parent));
}

const FORKED = tree(['a', ''], ['b', 'a'], ['c', 'b'], ['d', 'a'], ['e', 'd']);

function at(rows: Row[], id: string): Row {
  const found = rows.find(row => row.id === id);
  assert.ok(found, id);
  return found;
}

/** Every line that leaves a row below arrives in the next, and the other way round. */
function assertUnbroken(rows: Row[]): void {
  let open = new Set<number>();
  for (const row of rows) {
    const arriving = row.passing.filter(lane => open.has(lane));
    assert.deepEqual(new Set([...arriving, ...row.joining]), open, `above ${row.id}`);
    assert.deepEqual(arriving, row.passing, `a line begins beside ${row.id}`);
    open = new Set([...row.passing, ...(row.descends ? [row.lane] : [])]);
  }
  assert.equal(open.size, 0);
}

test('nothing but the present and the origin where there are no snapshots', () => {
  const { rows, width } = layout([], '');
  assert.deepEqual(rows.map(row => row.id), [PRESENT, ORIGIN]);
  assert.equal(width, 1);
  assertUnbroken(rows);
});

test('newest above, and the way to the present in the first lane', () => {
  const { rows } = layout(FORKED, 'c');
  assert.deepEqual(rows.map(row => row.id), [PRESENT, 'e', 'd', 'c', 'b', 'a', ORIGIN]);
  assert.deepEqual(rows.map(row => row.lane), [0, 1, 1, 0, 0, 0, 0]);
  assert.deepEqual(rows.map(row => row.isOnPath), [true, false, false, true, true, true, true]);
  assertUnbroken(rows);
});

test('branches end where they began', () => {
  const { rows } = layout(FORKED, 'c');
  assert.deepEqual(at(rows, 'a').joining, [0, 1]);
  assert.deepEqual(at(rows, 'e').joining, []);
});

test('a lane that is free is used again', () => {
  const { rows, width } = layout(tree(['a', ''], ['x', 'a'], ['b', 'a'], ['y', 'b'], ['c', 'b']), 'c');
  assert.equal(width, 2);
  assert.equal(at(rows, 'x').lane, at(rows, 'y').lane);
  assertUnbroken(rows);
});

test('a lane that became free between others is used again', () => {
  const snapshots = tree(['a', ''], ['b', 'a'], ['t', 'b'], ['c', 'b'], ['long', 'a'], ['s', 'c']);
  const { rows, width } = layout(snapshots, 'c');
  assert.deepEqual(['s', 'long', 't'].map(id => at(rows, id).lane), [1, 2, 1]);
  assert.equal(width, 3);
  assertUnbroken(rows);
});

test('several first states meet at the origin', () => {
  const { rows } = layout(tree(['a', ''], ['b', '']), 'b');
  assert.deepEqual(at(rows, ORIGIN).joining, [0, 1]);
  assertUnbroken(rows);
});

test('what descends from a snapshot that is gone descends from the origin', () => {
  const { rows } = layout(tree(['a', ''], ['c', 'gone']), 'c');
  assert.equal(at(rows, 'c').parent, rows.length - 1);
  assertUnbroken(rows);
});

test('a present that is not in the tree is at the origin', () => {
  const { rows } = layout(FORKED, 'nowhere');
  assert.equal(rows[0].parent, rows.length - 1);
  assertUnbroken(rows);
});

test('snapshots that say that they descend from each other do no harm', () => {
  const { rows } = layout(tree(['a', 'b'], ['b', 'a'], ['c', 'c']), 'b');
  assert.equal(rows.length, 5);
  assertUnbroken(rows);
  assert.deepEqual(path(tree(['a', 'b'], ['b', 'a']), 'b'), new Set(['b', 'a']));
});

test('the keys lead to the parent and to the newest child', () => {
  const { rows } = layout(FORKED, 'c');
  const place = (id: string): number => rows.findIndex(row => row.id === id);
  assert.equal(at(rows, 'a').child, place('d'));
  assert.equal(at(rows, 'd').parent, place('a'));
  assert.equal(at(rows, 'e').child, place('e'));
  assert.equal(rows[0].parent, place('c'));
  assert.equal(at(rows, ORIGIN).child, place('a'));
});

test('500 snapshots in many branches are laid out unbroken', () => {
  let seed = 7;
  const random = (): number => (seed = (seed * 48271) % 0x7fffffff) / 0x7fffffff;
  const snapshots: Snapshot[] = [];
  for (let number = 0; number < 500; number++) {
    const from = random() < 0.8 ? number - 1 : Math.floor(random() * number);
    snapshots.push(snapshot(`s${number}`, number ? `s${from}` : ''));
  }
  const { rows, width } = layout(snapshots, 's300');
  assert.equal(rows.length, 502);
  assert.ok(width > 1 && width < 200);
  assertUnbroken(rows);
  assert.ok(rows.filter(row => row.isOnPath).every(row => row.lane === 0));
});
