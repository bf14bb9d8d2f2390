import type { TranslationBundle } from '@jupyterlab/translation';
import type { NotebookPanel } from '@jupyterlab/notebook';
import { Token } from '@lumino/coreutils';
import type { ISignal } from '@lumino/signaling';

import type { Actions } from './actions.ts';
import type { Machines } from './machines.ts';
import type { Store } from './model/store.ts';

/** What the parts of the extension share. */
export interface IMachines {
  readonly machines: Machines;
  /** What a user can have done, with the dialogues that belong to it. */
  readonly actions: Actions;
  readonly trans: TranslationBundle;
  /** The notebook that is in front, and the store of its kernel; null where there is none. */
  readonly notebook: NotebookPanel | null;
  readonly store: Store | null;
  /** Another notebook or another kernel is in front. */
  readonly moved: ISignal<IMachines, void>;
  /** That, or what is known of the machine, has changed: up to some times a second. */
  readonly changed: ISignal<IMachines, void>;
}

export const IMachines = new Token<IMachines>(
  'agentvm-kernel:IMachines',
  'The virtual machines under the notebooks of this page.'
);
