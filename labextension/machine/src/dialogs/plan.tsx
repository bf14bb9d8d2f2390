// What going back would lose, and what it cannot undo.

import type { TranslationBundle } from '@jupyterlab/translation';
import { ReactWidget } from '@jupyterlab/ui-components';
import * as React from 'react';

import { bytes, duration } from '../model/figures.ts';
import { beginning, plain } from '../model/plain.ts';
import type { Connection, Plan } from '../model/wire.ts';

/** How many of each are named. */
const NAMED = 8;

export class PlanView extends ReactWidget {
  private readonly plan: Plan;
  private readonly trans: TranslationBundle;

  constructor(plan: Plan, trans: TranslationBundle) {
    super();
    this.plan = plan;
    this.trans = trans;
    this.addClass('avm-dialog');
  }

  render(): React.ReactElement {
    const { plan, trans } = this;
    const unnamed = plan.left.length - NAMED;
    return (
      <>
        <h3>{trans.__('What is lost')}</h3>
        <ul>
          <li>
            {trans.__(
              'all that happened in the machine in the last %1: variables, files and processes; %2 of memory were written',
              duration(plan.seconds),
              bytes(plan.written)
            )}
          </li>
          {plan.lost.slice(0, NAMED).map((code, place) => (
            <li key={place}>
              {trans.__('what this cell did:')} <code>{beginning(code)}</code>
            </li>
          ))}
        </ul>
        {plan.left.length > 0 && (
          <>
            <h3>{trans.__('What is left behind, and can be gone back to')}</h3>
            <ul>
              {plan.left.slice(0, NAMED).map(one => (
                <li key={one.id}>{plain(one.label, 64) || beginning(one.cell.code) || one.id}</li>
              ))}
              {unnamed > 0 && <li>{trans._n('and %1 more snapshot', 'and %1 more snapshots', unnamed)}</li>}
            </ul>
          </>
        )}
        <h3>{trans.__('What cannot be undone')}</h3>
        <ul>
          {plan.connection_count > 0 ? (
            <li>
              {trans._n(
                'traffic that was sent already: %1 connection, to',
                'traffic that was sent already: %1 connections, to',
                plan.connection_count
              )}{' '}
              <span className="avm-guest">{hosts(plan.connections)}</span>
            </li>
          ) : (
            <li>{trans.__('nothing was sent to other machines')}</li>
          )}
          <li>{trans.__('what the notebook shows already, and files that were pulled out of the machine')}</li>
        </ul>
      </>
    );
  }
}

function hosts(connections: readonly Connection[]): string {
  const names = [...new Set(connections.map(one => plain(one.name || one.address, 100)))];
  return names.slice(0, NAMED).join(', ') + (names.length > NAMED ? ', …' : '');
}
