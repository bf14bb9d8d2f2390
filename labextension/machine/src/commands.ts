// Everything that the panel can do, for the palette, the menus and the keyboard.

import type { JupyterFrontEnd } from '@jupyterlab/application';
import type { ICommandPalette } from '@jupyterlab/apputils';
import type { ReadonlyPartialJSONObject } from '@lumino/coreutils';

import { PRESENT } from './model/lanes.ts';
import { plain } from './model/plain.ts';
import type { Store } from './model/store.ts';
import type { Snapshot } from './model/wire.ts';
import type { IMachines } from './tokens.ts';

export const OPEN = 'agentvm:open-panel';
export const GO_BACK = 'agentvm:go-back';
export const COMPARE = 'agentvm:compare';
export const LABEL = 'agentvm:label';
export const REMOVE = 'agentvm:remove';

const CATEGORY = 'AgentVM';

/** Adds the commands. */
export function addCommands(app: JupyterFrontEnd, shared: IMachines, palette: ICommandPalette | null): void {
  const { actions, trans } = shared;
  const runs = (store: Store): boolean => store.phase === 'running';
  const ids: string[] = [];
  const add = (name: string, label: string, act: (store: Store) => unknown, can = runs): void => {
    const id = `agentvm:${name}`;
    app.commands.addCommand(id, {
      label,
      isEnabled: () => shared.store !== null && !shared.store.doing && can(shared.store),
      execute: async () => {
        if (shared.store) {
          await act(shared.store);
        }
      },
      describedBy: { args: { type: 'object', properties: {} } }
    });
    ids.push(id);
    palette?.addItem({ command: id, category: CATEGORY });
  };
  palette?.addItem({ command: OPEN, category: CATEGORY });
  add('snapshot-with-label', trans.__('Take a Snapshot with a Label …'), store => actions.snapshotWithLabel(store));
  add(
    'rollback',
    trans.__('Go Back to the Newest Snapshot …'),
    store => actions.rollback(store, store.tree?.current ?? ''),
    canRollBack
  );
  add('fork', trans.__('Run the Cell in Forks of the Machine …'), store => actions.fork(store, activeCode(shared)));
  add('travel', trans.__('Switch Time Travel'), store => actions.travel(store, !store.machine?.travelling));
  add('prune', trans.__('Remove Old Snapshots …'), store => actions.prune(store));
  add('restart', trans.__('Start a Fresh Machine …'), store => actions.restart(store), isOurs);
  add('stop', trans.__('Stop the Machine …'), store => actions.stop(store));
  ids.push(...addSnapshotCommands(app, shared));
  let before = '';
  shared.changed.connect(() => {
    const { store } = shared;
    const now = `${store?.kernel} ${store?.phase} ${store?.doing} ${store?.tree?.current}`;
    if (now !== before) {
      before = now;
      ids.forEach(id => app.commands.notifyCommandChanged(id));
    }
  });
}

/** Adds what is done with the snapshot that the arguments name; returns the commands. */
function addSnapshotCommands(app: JupyterFrontEnd, shared: IMachines): string[] {
  const { actions, trans } = shared;
  const named = ({ snapshot }: ReadonlyPartialJSONObject): Snapshot | undefined =>
    shared.store?.tree?.snapshots.find(one => one.id === snapshot);
  type Act = (store: Store, snapshot: Snapshot) => unknown;
  const runs = (store: Store): boolean => store.phase === 'running';
  const add = (id: string, label: string, act: Act, can: (store: Store, snapshot: Snapshot) => boolean): string => {
    app.commands.addCommand(id, {
      label,
      isEnabled: args => {
        const [store, snapshot] = [shared.store, named(args)];
        return !!store && !store.doing && !!snapshot && can(store, snapshot);
      },
      execute: async args => {
        const [store, snapshot] = [shared.store, named(args)];
        if (store && snapshot) {
          await act(store, snapshot);
        }
      },
      describedBy: {
        args: { type: 'object', required: ['snapshot'], properties: { snapshot: { type: 'string' } } }
      }
    });
    return id;
  };
  const compare: Act = (store, snapshot) =>
    actions.compare(store, snapshot.id, PRESENT, [
      plain(snapshot.label, 64) || snapshot.id,
      trans.__('The machine as it is now')
    ]);
  return [
    add(GO_BACK, trans.__('Go Back …'), (store, { id }) => actions.rollback(store, id), isOurs),
    add(COMPARE, trans.__('Compare with the Present …'), compare, runs),
    add(LABEL, trans.__('Label …'), (store, snapshot) => actions.label(store, snapshot), runs),
    add(
      REMOVE,
      trans.__('Remove …'),
      (store, snapshot) => actions.remove(store, snapshot),
      (store, { id }) => runs(store) && id !== store.tree?.current
    )
  ];
}

/** Returns the source of the cell in front; empty where it is no code. */
export function activeCode(shared: IMachines): string {
  const model = shared.notebook?.content.activeCell?.model;
  return model?.type === 'code' ? model.sharedModel.source : '';
}

function canRollBack(store: Store): boolean {
  return isOurs(store) && !!store.tree?.current;
}

function isOurs(store: Store): boolean {
  return store.phase === 'running' || store.phase === 'ended' || store.phase === 'none';
}
