import assert from 'node:assert/strict';
import { test } from 'node:test';

import { age, bytes, duration, rate } from '../src/model/figures.ts';

test('sizes', () => {
  assert.deepEqual([0, 2048, 1 << 20, 300 << 20, 1.5 * (1 << 30)].map(bytes), [
    ...['0 B', '2 KiB', '1.0 MiB', '300 MiB', '1.5 GiB']
  ]);
});

test('rates', () => {
  assert.deepEqual([0, 5000, 2.5e6, 3e9].map(rate), ['0 kB/s', '5 kB/s', '2.5 MB/s', '3.0 GB/s']);
});

test('durations in two units, ages in one', () => {
  assert.deepEqual([-1, 0.4, 59, 61, 3600, 90061].map(duration), ['0 s', '0 s', '59 s', '1 min 1 s', '1 h', '1 d 1 h']);
  assert.equal(age(90061), '1 d');
});
