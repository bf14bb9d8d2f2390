// What differs between two states of a machine, as the guest tells it.

import type { TranslationBundle } from '@jupyterlab/translation';
import { ReactWidget } from '@jupyterlab/ui-components';
import * as React from 'react';

import { bytes } from '../model/figures.ts';
import { plain } from '../model/plain.ts';
import type { Comparison } from '../model/wire.ts';

/** How many lines of each kind are shown. */
const LINES = 200;

type Line = { sign: '+' | '−' | '±'; name: string; more: string };

export class ComparisonView extends ReactWidget {
  private readonly found: Comparison;
  private readonly names: [string, string];
  private readonly trans: TranslationBundle;

  constructor(found: Comparison, names: [string, string], trans: TranslationBundle) {
    super();
    this.found = found;
    this.names = names;
    this.trans = trans;
    this.addClass('avm-dialog');
    this.addClass('avm-comparison');
  }

  render(): React.ReactElement {
    const { found, trans } = this;
    const { files } = found;
    const hidden = files.truncated ? trans.__(' (not all are shown)') : '';
    return (
      <>
        <p>{trans.__('From “%1” to “%2”:', ...this.names)}</p>
        <p className="avm-warning">
          {trans.__('This is what the machine says of itself: a hostile program in it can make it up.')}
        </p>
        {this.section(trans.__('Files (%1)', files.count) + hidden, [
          ...files.added.map(one => line('+', one.path, bytes(one.size ?? 0))),
          ...files.removed.map(one => line('−', one.path, bytes(one.size ?? 0))),
          ...files.changed.map(one =>
            line('±', one.path, `${bytes(one.size_before ?? 0)} → ${bytes(one.size_after ?? 0)}`)
          )
        ])}
        {this.section(trans.__('Packages'), [
          ...found.packages.added.map(one => line('+', one.name, one.version)),
          ...found.packages.removed.map(one => line('−', one.name, one.version)),
          ...found.packages.changed.map(one => line('±', one.name, `${one.before} → ${one.after}`))
        ])}
        {this.section(trans.__('Processes'), [
          ...found.processes.added.map(one => line('+', one)),
          ...found.processes.removed.map(one => line('−', one))
        ])}
        {this.section(trans.__('Variables'), [
          ...found.variables.added.map(one => line('+', one.name, `${one.type ?? ''} ${one.summary ?? ''}`)),
          ...found.variables.removed.map(one => line('−', one.name, `${one.type ?? ''} ${one.summary ?? ''}`)),
          ...found.variables.changed.map(one => line('±', one.name, `${one.before} → ${one.after}`))
        ])}
      </>
    );
  }

  private section(title: string, lines: Line[]): React.ReactElement {
    const { trans } = this;
    const said = { '+': trans.__('added'), '−': trans.__('removed'), '±': trans.__('changed') };
    return (
      <section key={title}>
        <h3>{title}</h3>
        {lines.length === 0 && <p className="avm-faint">{trans.__('The same.')}</p>}
        <ul className="avm-changes" tabIndex={0} aria-label={title}>
          {lines.slice(0, LINES).map((one, place) => (
            <li key={place}>
              <span className="avm-sign" aria-label={said[one.sign]}>
                {one.sign}
              </span>
              <span className="avm-guest">{one.name}</span> <span className="avm-guest avm-faint">{one.more}</span>
            </li>
          ))}
          {lines.length > LINES && <li>{trans.__('and %1 more', lines.length - LINES)}</li>}
        </ul>
      </section>
    );
  }
}

function line(sign: Line['sign'], name: string, more = ''): Line {
  return { sign, name: plain(name, 300), more: plain(more, 200) };
}
