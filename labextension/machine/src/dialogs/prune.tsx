// How many snapshots without a label stay.

import type { TranslationBundle } from '@jupyterlab/translation';
import { ReactWidget } from '@jupyterlab/ui-components';
import * as React from 'react';

import { NumberField } from './number.tsx';

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
        <NumberField
          title={trans.__('How many without a label stay')}
          least={0}
          most={MOST}
          initial={KEPT}
          onChange={kept => (this.value = kept ?? KEPT)}
        />
      </>
    );
  }
}
