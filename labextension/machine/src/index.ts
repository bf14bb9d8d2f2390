// The extension's parts, as JupyterLab and Notebook load them.

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { INotebookTracker } from '@jupyterlab/notebook';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';
import { Signal } from '@lumino/signaling';

import { Api } from './api.ts';
import { addCommands, OPEN } from './commands.ts';
import { Front } from './front.ts';
import { icon } from './icon.ts';
import { Machines } from './machines.ts';
import { notebook } from './notebook/index.ts';
import { addNotices } from './notices.ts';
import { Panel } from './panel/panel.tsx';
import { Status } from './status.tsx';
import { IMachines } from './tokens.ts';

const machines: JupyterFrontEndPlugin<IMachines> = {
  id: 'agentvm-kernel:machines',
  description: 'Knows the virtual machines under the notebooks of this page.',
  autoStart: true,
  provides: IMachines,
  // Notebook's pages without a notebook have no tracker.
  optional: [INotebookTracker, ITranslator],
  activate: (app: JupyterFrontEnd, tracker: INotebookTracker | null, translator: ITranslator | null): IMachines => {
    const trans = (translator ?? nullTranslator).load('agentvm_kernel');
    const api = new Api(app.serviceManager.serverSettings, trans);
    return new Front(tracker, new Machines(api, app.serviceManager), trans);
  }
};

const panel: JupyterFrontEndPlugin<void> = {
  id: 'agentvm-kernel:machine',
  description: 'Shows and steers the virtual machine under the notebook in front.',
  autoStart: true,
  requires: [IMachines],
  optional: [INotebookTracker, ICommandPalette, IStatusBar, ISettingRegistry],
  activate: (
    app: JupyterFrontEnd,
    shared: IMachines,
    tracker: INotebookTracker | null,
    palette: ICommandPalette | null,
    statusBar: IStatusBar | null,
    settings: ISettingRegistry | null
  ): void => {
    // Notebook's pages without a notebook have none.
    if (!tracker) {
      return;
    }
    const view = new Panel(shared, app.commands);
    view.title.icon = icon;
    view.title.caption = shared.trans.__('Virtual machine');
    app.shell.add(view, 'right', { rank: 400, type: 'AgentVM' });
    app.commands.addCommand(OPEN, {
      label: shared.trans.__('Show the Virtual Machine'),
      icon,
      execute: () => app.shell.activateById(view.id),
      describedBy: { args: { type: 'object', properties: {} } }
    });
    addCommands(app, shared, palette);
    let chosen: ISettingRegistry.ISettings | undefined;
    const isWanted = (name: string): boolean => chosen?.get(name).composite !== false;
    const changed = new Signal<Panel, void>(view);
    if (statusBar) {
      statusBar.registerStatusItem('agentvm-kernel:status', {
        item: new Status(shared, () => void app.commands.execute(OPEN)),
        align: 'left',
        rank: 10,
        isActive: () => isWanted('statusBar'),
        activeStateChanged: changed
      });
    }
    addNotices(app, shared, tracker, () => isWanted('notices'));
    void settings?.load(panel.id).then(
      found => {
        chosen = found;
        found.changed.connect(() => changed.emit());
        changed.emit();
      },
      (reason: unknown) => console.error('The settings of the virtual machine panel could not be read.', reason)
    );
  }
};

export default [machines, panel, notebook];
