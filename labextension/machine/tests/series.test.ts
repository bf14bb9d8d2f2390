import assert from 'node:assert/strict';
import { test } from 'node:test';

import { line, Series, SPAN } from '../src/model/series.ts';
import type { Stats } from '../src/model/wire.ts';

function stats(time: number, changes: Partial<Stats> = {}): Stats {
  return {
    ...{ time, cpu_percent: 10, memory: 1, memory_cost: 2, disk_read: 0, disk_written: 0 },
    ...{ network_sent: 0, network_received: 0, connections: 0, executing: false, ...changes }
  };
}

test('counters become rates, and nothing is known of the first', () => {
  const series = new Series();
  series.add(stats(10));
  series.add(stats(12, { disk_read: 1000, disk_written: 3000, network_sent: 500 }));
  assert.deepEqual(series.points.map(point => point.disk), [null, 2000]);
  assert.equal(series.points[1].network, 250);
});

test('what comes late or twice is left out', () => {
  const series = new Series();
  [10, 11, 11, 9].forEach(time => series.add(stats(time)));
  assert.deepEqual(series.points.map(point => point.time), [10, 11]);
});

test('counters that begin anew or were not seen for long give no rate', () => {
  const series = new Series();
  series.add(stats(10, { disk_read: 5000 }));
  series.add(stats(11, { disk_read: 100 }));
  series.add(stats(60, { disk_read: 9000 }));
  assert.deepEqual(series.points.map(point => point.disk), [null, null, null]);
});

test('no more is kept than is shown', () => {
  const series = new Series();
  for (let time = 0; time < 1000; time++) {
    series.add(stats(time));
  }
  assert.ok(series.points.length <= SPAN + 2);
  assert.equal(series.points.at(-1)?.time, 999);
});

test('a line ends at the right edge, is cut at the top, and is interrupted where nothing was measured', () => {
  const series = new Series();
  [0, 1, 30, 31].forEach(time => series.add(stats(time, { cpu_percent: time === 31 ? 500 : 50 })));
  const drawn = line(series.points, point => point.cpu, 100);
  assert.equal(drawn.match(/M/g)?.length, 2);
  assert.ok(drawn.endsWith('L1.0000 0.0000'), drawn);
});
