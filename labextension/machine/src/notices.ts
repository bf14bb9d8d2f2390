// Tells what has happened to machines where the user may not look: a line that goes away, and a way to the panel.

import type { JupyterFrontEnd } from '@jupyterlab/application';
import { Notification } from '@jupyterlab/apputils';
import type { INotebookTracker } from '@jupyterlab/notebook';

import { OPEN } from './commands.ts';
import { News, type Kind } from './model/news.ts';
import { plain } from './model/plain.ts';
import type { Store } from './model/store.ts';
import type { IMachines } from './tokens.ts';

/** Milliseconds that a line stays; that a machine has ended stays until it was read. */
const SHOWN = 8000;

/** What a kernel is in while its end, and its machine's, is somebody's wish or told by JupyterLab. */
const CHANGING = ['restarting', 'autorestarting', 'starting', 'terminating', 'dead'];

/**
 * Tells of the machines under all notebooks.
 *
 * @param isWanted Whether the settings say so.
 */
export function addNotices(
  app: JupyterFrontEnd,
  shared: IMachines,
  tracker: INotebookTracker,
  isWanted: () => boolean
): void {
  const follow = (store: Store): void => {
    new News(store, kind => {
      const notebook = tracker.find(one => one.sessionContext.session?.kernel?.id === store.kernel);
      const status = notebook?.sessionContext.session?.kernel?.status ?? '';
      if (notebook && isWanted() && !(kind === 'ended' && CHANGING.includes(status))) {
        const show = (): void => {
          app.shell.activateById(notebook.id);
          void app.commands.execute(OPEN);
        };
        tell(kind, plain(notebook.title.label, 40), show, shared);
      }
    });
  };
  shared.machines.stores.forEach(({ store }) => follow(store));
  shared.machines.taken.connect((_, store) => follow(store));
}

function tell(kind: Kind, notebook: string, show: () => void, { trans }: IMachines): void {
  const said: Record<Kind, string> = {
    ended: trans.__('The virtual machine under %1 has ended.', notebook),
    blocked: trans.__('Something that %1 was to show was blocked. The panel says what and why.', notebook),
    refused: trans.__('The virtual machine under %1 was refused a connection. The panel says to whom.', notebook),
    unusual: trans.__('Something unusual was seen in the virtual machine under %1. The panel says what.', notebook),
    full: trans.__('Your snapshots take nearly all the room that they may. Remove some that are not needed.')
  };
  Notification.emit(said[kind], kind === 'ended' ? 'error' : 'warning', {
    autoClose: kind === 'ended' ? false : SHOWN,
    actions: [{ label: trans.__('Show'), callback: show, displayType: 'accent' }]
  });
}
