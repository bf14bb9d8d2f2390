import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { Snapshot } from '../src/model/wire.ts';
import type { Ran } from '../src/notebook/record.ts';
import { Place, type Leg } from '../src/notebook/standing.ts';

type Vm = { id: string; way: Leg[]; at: string; last: number };

/** A notebook as the host keeps it: machines, runs and snapshots, and what it would tell of each. */
class Host {
  runs = 0;
  snapshots: Snapshot[] = [];
  private machines = 0;
  private readonly ways = new Map<string, Leg[]>();
  vm: Vm = this.begin([], '');

  begin(way: Leg[], at: string): Vm {
    this.machines += 1;
    return { id: `vm-${this.machines}`, way, at, last: 0 };
  }

  /** Runs a cell; `travel` takes a snapshot after it. */
  run(travel = false): Ran {
    const ran = this.reply();
    this.vm.last = ran.run;
    return travel ? { ...ran, after: this.snapshot('auto') } : ran;
  }

  /** Runs a magic, which may take a snapshot. */
  magic(act: () => unknown = () => undefined): Ran {
    const ran = this.reply();
    act();
    return { ...ran, vm: this.vm.id, after: this.vm.at, host: true };
  }

  snapshot(kind = 'manual', busy = false): string {
    const id = (this.snapshots.length + 1).toString(16).padStart(12, '0');
    const run = busy ? this.runs : this.vm.last;
    this.snapshots.push({
      ...{ id, parent: this.vm.at, label: '', text: '', kind, created: 0, size: 0, written: 0 },
      ...{ cell: { run, count: 0, code: '' }, busy, pause_ms: 0, stored: true }
    });
    this.ways.set(id, [...this.vm.way, { vm: this.vm.id, run: busy ? run - 1 : run }]);
    this.vm.at = id;
    return id;
  }

  back(id: string): void {
    this.vm = this.begin(this.ways.get(id) ?? [], id);
  }

  restart(): void {
    this.vm = this.begin([], '');
    this.runs = 0;
  }

  prune(id: string): void {
    const { parent } = this.find(id);
    this.snapshots = this.snapshots
      .filter(one => one.id !== id)
      .map(one => (one.parent === id ? { ...one, parent } : one));
  }

  find(id: string): Snapshot {
    const found = this.snapshots.find(one => one.id === id);
    assert.ok(found);
    return found;
  }

  get place(): Place {
    return new Place({ vm: this.vm.id, way: this.vm.way, current: this.vm.at, snapshots: this.snapshots });
  }

  states(...ran: Ran[]): string {
    return ran.map(one => this.place.standing(one).state).join(' ');
  }

  private reply(): Ran {
    return { run: ++this.runs, vm: this.vm.id, base: this.vm.at, after: this.vm.at, kernel: 'k' };
  }
}

test('all that ran in the present machine is current', () => {
  const host = new Host();
  assert.equal(host.states(host.run(), host.magic(() => host.snapshot()), host.run()), 'current current current');
});

test('what ran after the snapshot that one went back to is left, with time travel and without', () => {
  for (const travel of [false, true]) {
    const host = new Host();
    const one = host.run(travel);
    const point = host.snapshot();
    const two = host.run(travel);
    const three = host.run(travel);
    host.back(point);
    assert.equal(host.states(one, two, three), 'current left left');
    const four = host.run(travel);
    assert.equal(host.states(one, two, three, four), 'current left left current');
    host.snapshot();
    assert.equal(host.states(one, two, three, four), 'current left left current');
  }
});

test('a branch that one goes back to is current again, and the other is left', () => {
  const host = new Host();
  const one = host.run(true);
  const two = host.run(true);
  host.back(one.after);
  const three = host.run(true);
  assert.equal(host.states(one, two, three), 'current left current');
  host.back(two.after);
  assert.equal(host.states(one, two, three), 'current current left');
  host.back(three.after);
  assert.equal(host.states(one, two, three), 'current left current');
});

test('two machines that went on from one snapshot are told apart though neither took another', () => {
  const host = new Host();
  const point = host.snapshot();
  const one = host.run();
  host.back(point);
  const two = host.run();
  assert.equal(host.states(one, two), 'left current');
  const end = host.snapshot();
  host.back(point);
  host.back(end);
  assert.equal(host.states(one, two), 'left current');
});

test('an undo leaves what was undone, and what was run instead is current', () => {
  const host = new Host();
  const [one, two, three] = [host.run(true), host.run(true), host.run(true)];
  const undo = host.magic(() => host.back(two.after));
  assert.equal(host.states(one, two, three, undo), 'current current left current');
});

test('the cell that made forks is behind the fork that was adopted, and what followed it is not', () => {
  const host = new Host();
  const one = host.run();
  const fork = host.magic(() => host.snapshot('fork'));
  const point = host.vm.at;
  const two = host.run();
  const adopt = host.magic(() => host.back(point));
  assert.equal(host.states(one, fork, two, adopt), 'current current left current');
});

test('forks of forks', () => {
  const host = new Host();
  const one = host.run();
  const outer = host.magic(() => host.snapshot('fork'));
  const first = host.vm.at;
  host.back(first);
  const two = host.run();
  const inner = host.magic(() => host.snapshot('fork'));
  const second = host.vm.at;
  host.back(second);
  const three = host.run();
  assert.equal(host.states(one, outer, two, inner, three), 'current current current current current');
  host.back(first);
  assert.equal(host.states(one, outer, two, inner, three), 'current current left left left');
  host.back(second);
  assert.equal(host.states(one, outer, two, inner, three), 'current current current current left');
});

test('the magic that took a snapshot is behind it', () => {
  const host = new Host();
  const one = host.run();
  const snapshot = host.magic(() => host.snapshot());
  const point = host.vm.at;
  const two = host.run();
  host.back(point);
  assert.equal(host.states(one, snapshot, two), 'current current left');
});

test('a cell that a snapshot froze is not wholly behind it', () => {
  const host = new Host();
  const one = host.run();
  const frozen = { ...host.run(), base: '' };
  const point = host.snapshot('manual', true);
  host.back(point);
  assert.equal(host.states(one, { ...frozen, after: point }), 'current left');
});

test('snapshots that were pruned take nothing away from what is known', () => {
  const host = new Host();
  const one = host.run(true);
  const two = host.run(true);
  host.back(one.after);
  const three = host.run(true);
  host.back(three.after);
  const before = host.states(one, two, three);
  assert.equal(before, 'current left current');
  host.prune(one.after);
  assert.equal(host.states(one, two, three), before);
  host.prune(two.after);
  assert.equal(host.states(one, two, three), before);
});

test('after a restart all is of an earlier machine, whatever is run and taken since', () => {
  const host = new Host();
  const one = host.run(true);
  const two = host.run(true);
  host.restart();
  assert.equal(host.states(one, two), 'earlier earlier');
  assert.equal(host.place.standing(two).branch?.id, two.after);
  const three = host.run(true);
  assert.equal(three.run, 1);
  assert.equal(host.states(one, two, three), 'earlier earlier current');
  host.back(one.after);
  assert.equal(host.states(one, two, three), 'current left earlier');
});

test('a tree that is no tree does not go round for ever', () => {
  const host = new Host();
  const ran = host.run(true);
  host.snapshots[0] = { ...host.find(ran.after), parent: ran.after };
  assert.equal(host.states(ran), 'current');
  const other = { ...ran, vm: 'vm-other' };
  assert.equal(host.states({ ...other, run: 2, after: '' }), 'earlier');
});

test('time travel leads to before and after a cell', () => {
  const host = new Host();
  const one = host.run(true);
  const two = host.run(true);
  const { before, after } = host.place.ways(two);
  assert.deepEqual([before?.id, after?.id], [one.after, two.after]);
  assert.equal(host.place.ways(one).before, null);
});

test('there is no way to where no snapshot was taken, or is any more, nor to before a magic', () => {
  const host = new Host();
  const none = { before: null, after: null };
  host.snapshot();
  assert.deepEqual(host.place.ways(host.run()), none);
  assert.deepEqual(host.place.ways(host.magic(() => host.snapshot())), none);
  const ran = host.run(true);
  host.prune(ran.after);
  assert.equal(host.place.ways(ran).after, null);
  assert.equal(host.place.ways(ran).before?.id, ran.base);
});

test('a notebook that names the snapshot of another cell as its own is not led there as to its end', () => {
  const host = new Host();
  const one = host.run(true);
  const two = host.run(true);
  assert.equal(host.place.ways({ ...two, after: one.after, base: '' }).after, null);
});
