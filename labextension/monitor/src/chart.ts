// One plot over time: lines, a limit, and what happened as marks.

import uPlot from 'uplot';

import type { Event, Kind, Now, Point } from './messages';
import { clock, element, said, type Unit } from './said';

const HEIGHT = 120;
/** Seconds without a measurement after which a line is interrupted. */
const GAP = 5;
/** Seconds that are shown at least. */
const SPAN = 60;
/** Steps of an axis for memory: powers of two from 1 MiB. */
const POWERS = Array.from({ length: 24 }, (_, power) => 2 ** (20 + power));
/** Marks in the order in which they are drawn: a way back hides the VM that began by it. */
const LAYERS: Kind[] = ['cell', 'vm', 'snapshot', 'end', 'rollback'];
/** Pixels within which the cursor is on a mark. */
const NEAR = 5;

export interface Plot {
  title: string;
  unit: Unit;
  /** Which value of a point, and what it is called. */
  lines: [number, string][];
  limit: (now: Now) => number;
  /** Whether the limit is always in sight, or only when use comes near it. */
  showsLimit: boolean;
}

export const PLOTS: Plot[] = [
  { title: 'CPU', unit: '%', lines: [[1, '']], limit: now => now.cpu, showsLimit: true },
  {
    title: 'Memory',
    unit: 'B',
    lines: [
      [3, 'of the guest'],
      [2, 'on the host']
    ],
    limit: now => now.memory,
    showsLimit: true
  },
  {
    title: 'Disk',
    unit: 'B/s',
    lines: [
      [4, 'read'],
      [5, 'written']
    ],
    limit: now => now.disk,
    showsLimit: false
  },
  {
    title: 'Network',
    unit: 'B/s',
    lines: [
      [7, 'received'],
      [6, 'sent']
    ],
    limit: () => 0,
    showsLimit: false
  }
];

export class Chart {
  readonly node = element('div', 'agentvm-chart');
  private readonly title = element('div', 'agentvm-chart-title');
  private readonly place = element('div');
  private plot: uPlot | null = null;
  private events: Event[] = [];
  private limit = 0;
  private end = 0;
  private data: uPlot.AlignedData = [[]];

  constructor(
    private readonly what: Plot,
    private readonly sync: string,
    private readonly onCursor: (time: number | null, near: number) => void
  ) {
    this.node.append(this.title, this.place);
  }

  update(points: Point[], events: Event[], now: Now, width: number): void {
    this.events = [...events].sort((one, other) => LAYERS.indexOf(one[1]) - LAYERS.indexOf(other[1]));
    this.limit = this.what.limit(now);
    this.end = Math.max(points[points.length - 1][0], ...events.map(event => event[2]));
    this.data = aligned(points, this.what);
    if (this.plot === null) {
      this.plot = new uPlot(this.options(width), this.data, this.place);
    } else {
      if (this.plot.width !== width) {
        this.plot.setSize({ width, height: HEIGHT });
      }
      this.plot.setData(this.data);
    }
    this.tell();
  }

  destroy(): void {
    this.plot?.destroy();
    this.plot = null;
  }

  /** Writes the values above the plot: those under the cursor, or the newest. */
  private tell(): void {
    const { title, unit, lines } = this.what;
    const index = this.plot?.cursor.idx;
    const at = index ?? this.data[0].length - 1;
    this.title.replaceChildren(element('b', '', title));
    lines.forEach(([, called], place) => {
      const value = this.data[place + 1]?.[at];
      if (value !== null && value !== undefined) {
        const part = element('span', `agentvm-line-${place}`, `${said(value, unit)} ${called}`.trim());
        this.title.append(part);
      }
    });
    if (this.limit) {
      this.title.append(element('span', 'agentvm-limit', `limit ${said(this.limit, unit)}`));
    }
  }

  private options(width: number): uPlot.Options {
    const colour = (name: string): string => getComputedStyle(this.node).getPropertyValue(name).trim() || '#888';
    const axis = { stroke: () => colour('--agentvm-faint'), grid: { stroke: () => colour('--agentvm-grid'), width: 1 } };
    return {
      width,
      height: HEIGHT,
      legend: { show: false },
      cursor: { sync: { key: this.sync }, drag: { x: false, y: false }, y: false, points: { size: 6 } },
      scales: {
        x: { range: (_, min) => [Math.min(min, this.end - SPAN), this.end] },
        y: { range: (_, __, max) => [0, this.top(max)] }
      },
      axes: [
        { ...axis, size: 22, ticks: { show: false }, space: 70, font: '10px sans-serif', values: (_, at) => at.map(clock) },
        {
          ...axis,
          size: 58,
          ticks: { show: false },
          space: 26,
          font: '10px sans-serif',
          values: (_, at) => at.map(value => said(value, this.what.unit)),
          ...(this.what.unit === 'B' ? { incrs: POWERS } : {})
        }
      ],
      series: [
        {},
        ...this.what.lines.map((_, place) => ({
          stroke: () => colour(`--agentvm-line-${place}`),
          width: 1.5,
          points: { show: false }
        }))
      ],
      hooks: {
        drawClear: [plot => this.drawEvents(plot, colour)],
        draw: [plot => this.drawLimit(plot, colour)],
        setCursor: [plot => this.cursor(plot)]
      }
    };
  }

  private top(max: number | null): number {
    const used = Math.max(max ?? 0, this.what.unit === '%' ? 10 : 60_000);
    const isNear = this.limit > 0 && (this.what.showsLimit || this.limit < 4 * used);
    return 1.08 * (isNear ? Math.max(used, this.limit) : used);
  }

  private cursor(plot: uPlot): void {
    this.tell();
    const left = plot.cursor.left ?? -1;
    const isOn = left >= 0 && plot.cursor.idx !== null && plot.cursor.idx !== undefined;
    const near = (plot.posToVal(left + NEAR, 'x') - plot.posToVal(left, 'x')) || 1;
    this.onCursor(isOn ? plot.posToVal(left, 'x') : null, near);
  }

  private drawEvents(plot: uPlot, colour: (name: string) => string): void {
    const { left, top, width, height } = plot.bbox;
    const place = (time: number): number => plot.valToPos(time, 'x', true);
    const context = plot.ctx;
    context.save();
    context.beginPath();
    context.rect(left, top, width, height);
    context.clip();
    for (const [, kind, time, , end, failed] of this.events) {
      const from = place(time);
      if (kind === 'cell') {
        const until = place(end ?? this.end);
        context.fillStyle = colour(failed ? '--agentvm-failed' : '--agentvm-cell');
        context.fillRect(from, top, Math.max(until - from, devicePixelRatio), height);
      } else {
        context.strokeStyle = colour(`--agentvm-${kind}`);
        context.lineWidth = 1.5 * devicePixelRatio;
        context.setLineDash(kind === 'snapshot' ? [3 * devicePixelRatio, 3 * devicePixelRatio] : []);
        context.beginPath();
        context.moveTo(from, top);
        context.lineTo(from, top + height);
        context.stroke();
      }
    }
    context.restore();
  }

  private drawLimit(plot: uPlot, colour: (name: string) => string): void {
    if (!this.limit || this.limit > (plot.scales.y.max ?? 0)) {
      return;
    }
    const { left, width } = plot.bbox;
    const at = plot.valToPos(this.limit, 'y', true);
    const context = plot.ctx;
    context.save();
    context.strokeStyle = colour('--agentvm-limit');
    context.lineWidth = devicePixelRatio;
    context.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
    context.beginPath();
    context.moveTo(left, at);
    context.lineTo(left + width, at);
    context.stroke();
    context.restore();
  }
}

/** Says what happened at a time, or near it. */
export function happened(events: Event[], time: number, near: number): string {
  const names: Record<Kind, string> = {
    cell: 'cell',
    snapshot: 'snapshot',
    rollback: 'went back to',
    vm: 'began: VM',
    end: 'VM ended:'
  };
  return events
    .filter(([, kind, begin, , end]) =>
      kind === 'cell' ? time >= begin - near && time <= (end ?? Infinity) + near : Math.abs(time - begin) <= near
    )
    .map(([, kind, , text, , failed]) => `${names[kind]} ${text.split('\n')[0].slice(0, 80)}${failed ? ' (failed)' : ''}`)
    .slice(-4)
    .join(' · ');
}

/** Returns columns, with nothing where nothing was measured for some time. */
function aligned(points: Point[], what: Plot): uPlot.AlignedData {
  const columns: (number | null)[][] = [[], ...what.lines.map(() => [])];
  let before = Infinity;
  for (const point of points) {
    if (point[0] - before > GAP) {
      columns.forEach((column, place) => column.push(place ? null : before + GAP / 2));
    }
    columns[0].push(point[0]);
    what.lines.forEach(([index], place) => columns[place + 1].push(point[index]));
    before = point[0];
  }
  return columns as uPlot.AlignedData;
}
