// What the parts of the panel share.

import * as React from 'react';

import type { Actions } from '../actions.ts';
import type { Store } from '../model/store.ts';
import type { IMachines } from '../tokens.ts';

export interface Shared {
  shared: IMachines;
  actions: Actions;
  store: Store;
}

export const Context = React.createContext<Shared | null>(null);

export function useShared(): Shared {
  const found = React.useContext(Context);
  if (!found) {
    throw new Error('not within a panel');
  }
  return found;
}

/** Draws again when a store has changed, at most once a frame. */
export function useChanges(store: Store | null): void {
  const [, draw] = React.useReducer((count: number) => count + 1, 0);
  React.useEffect(() => {
    let frame = 0;
    const end = store?.listen(() => {
      cancelAnimationFrame(frame);
      frame = requestAnimationFrame(draw);
    });
    draw();
    return () => {
      cancelAnimationFrame(frame);
      end?.();
    };
  }, [store]);
}

/** Draws again every so many seconds, for ages. */
export function useClock(seconds: number): number {
  const [now, tell] = React.useState(Date.now);
  React.useEffect(() => {
    const timer = setInterval(() => {
      if (document.visibilityState === 'visible') {
        tell(Date.now());
      }
    }, 1000 * seconds);
    return () => clearInterval(timer);
  }, [seconds]);
  return now / 1000;
}
