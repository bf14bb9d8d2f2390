// What was measured of late, as lines to draw.

import type { Stats } from './wire.ts';

/** Seconds that are shown. */
export const SPAN = 120;
/** Seconds without a measurement after which a line is interrupted. */
const GAP = 5;

export interface Point {
  time: number;
  cpu: number;
  memory: number;
  /** Bytes per second; of the first measurement nothing is known. */
  disk: number | null;
  network: number | null;
}

export class Series {
  readonly points: Point[] = [];
  private last: Stats | null = null;

  add(stats: Stats): void {
    const last = this.last;
    if (last && stats.time <= last.time) {
      return;
    }
    const rate = (now: number, before: number): number | null => {
      // Counters begin anew with another VM.
      const seconds = last ? stats.time - last.time : Infinity;
      return last && seconds <= GAP && now >= before ? (now - before) / seconds : null;
    };
    this.points.push({
      time: stats.time,
      cpu: stats.cpu_percent,
      memory: stats.memory_cost,
      disk: rate(stats.disk_read + stats.disk_written, last ? last.disk_read + last.disk_written : 0),
      network: rate(
        stats.network_sent + stats.network_received,
        last ? last.network_sent + last.network_received : 0
      )
    });
    this.last = stats;
    const oldest = stats.time - SPAN;
    const kept = this.points.findIndex(point => point.time >= oldest);
    this.points.splice(0, Math.max(kept - 1, 0));
  }

  clear(): void {
    this.points.length = 0;
    this.last = null;
  }
}

/**
 * Returns an SVG path of a line, in a box from 0 to 1 in both directions.
 *
 * @param points What was measured.
 * @param value Which of it.
 * @param top The value at the upper edge.
 */
export function line(points: readonly Point[], value: (point: Point) => number | null, top: number): string {
  const end = points.length ? points[points.length - 1].time : 0;
  let drawn = '';
  let before = -Infinity;
  for (const point of points) {
    const found = value(point);
    if (found === null) {
      continue;
    }
    const x = 1 - (end - point.time) / SPAN;
    const y = 1 - Math.min(found / top, 1);
    drawn += `${point.time - before > GAP ? 'M' : 'L'}${x.toFixed(4)} ${y.toFixed(4)}`;
    before = point.time;
  }
  return drawn;
}
