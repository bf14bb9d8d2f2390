// The front end of %monitor, as anywidget loads it: a module of its own for each model.

import uplotStyle from 'uplot/dist/uPlot.min.css';

import type { Model } from './messages';
import { Store } from './store';
import style from './style.css';
import { MonitorView } from './view';

const STYLE = 'agentvm-monitor-style';

let store: Store | null = null;

function dress(): void {
  const made = document.getElementById(STYLE) ?? document.createElement('style');
  made.id = STYLE;
  made.textContent = uplotStyle + style;
  document.head.append(made);
}

export default {
  initialize({ model }: { model: Model }): () => void {
    dress();
    const own = new Store(model);
    store = own;
    return () => own.close();
  },

  render({ el }: { el: HTMLElement }): () => void {
    const view = new MonitorView(el, store as Store);
    return () => view.close();
  }
};
