import * as React from 'react';

import { bytes, percent, rate } from '../model/figures.ts';
import { line, SPAN, type Point } from '../model/series.ts';
import type { Machine } from '../model/wire.ts';
import { useShared } from './shared.ts';

interface Plot {
  title: string;
  value: (point: Point) => number | null;
  say: (value: number) => string;
  /** What the upper edge is at least. */
  least: number;
}

/** What the machine used in the last two minutes, as measured on the host. */
export function Plots(props: { machine: Machine }): React.ReactElement {
  const { machine } = props;
  const { store, shared } = useShared();
  const { trans } = shared;
  const plots: Plot[] = [
    { title: trans.__('CPU'), value: point => point.cpu, say: percent, least: 100 * (machine.vcpus ?? 1) },
    { title: trans.__('Memory'), value: point => point.memory, say: bytes, least: (machine.memory_mib ?? 1) * 2 ** 20 },
    { title: trans.__('Disk'), value: point => point.disk, say: rate, least: 1e6 },
    { title: trans.__('Network'), value: point => point.network, say: rate, least: 1e5 }
  ];
  const { points } = store.series;
  if (!points.length) {
    return <p className="avm-faint">{trans.__('Nothing has been measured yet.')}</p>;
  }
  return (
    <div className="avm-plots">
      {plots.map(plot => (
        <Chart key={plot.title} plot={plot} points={points} span={trans.__('last %1 s', SPAN)} />
      ))}
    </div>
  );
}

function Chart(props: { plot: Plot; points: readonly Point[]; span: string }): React.ReactElement {
  const { plot, points, span } = props;
  const top = points.reduce((most, point) => Math.max(most, plot.value(point) ?? 0), plot.least);
  const last = plot.value(points[points.length - 1]);
  const now = last === null ? '–' : plot.say(last);
  return (
    <figure className="avm-plot">
      <figcaption>
        {plot.title} <b>{now}</b>
      </figcaption>
      <svg
        viewBox="0 0 1 1"
        preserveAspectRatio="none"
        role="img"
        aria-label={`${plot.title}: ${now}; ${span}, 0 – ${plot.say(top)}`}
      >
        <path d={line(points, plot.value, top)} />
      </svg>
      <span className="avm-top" aria-hidden="true">
        {plot.say(top)}
      </span>
    </figure>
  );
}
