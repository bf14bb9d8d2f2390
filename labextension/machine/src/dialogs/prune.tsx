// How many snapshots without a label stay.

import type { TranslationBundle } from '@jupyterlab/translation';
import { ReactWidget } from '@jupyterlab/ui-components';
import * as React from 'react';

const KEPT = 10;
const MOST = 100_000;

export class PruneForm extends ReactWidget {
  value = KEPT;
  private readonly trans: TranslationBundle;

  constructor(trans: TranslationBundle) {
    super();
    this.trans = trans;
    this.addClass('avm-dialog');
  }

  render(): React.ReactElement {
    const { trans } = this;
    return (
      <>
        <p>
          {trans.__(
            'Old snapshots without a label are removed. Those with a label, and the one that the machine descends from, stay. This cannot be undone.'
          )}
        </p>
        <label className="avm-field">
          {trans.__('How many without a label stay')}
          <input
            className="jp-mod-styled"
            type="number"
            min={0}
            max={MOST}
            defaultValue={KEPT}
            onChange={event => (this.value = whole(event.target.value, KEPT, 0, MOST))}
          />
        </label>
      </>
    );
  }
}

/** Returns the whole number that a field holds, within bounds; or another where it holds none. */
export function whole(text: string, otherwise: number, least: number, most: number): number {
  const number = Math.round(Number(text));
  return text.trim() && Number.isFinite(number) ? Math.min(Math.max(number, least), most) : otherwise;
}
