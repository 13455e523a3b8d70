import pytest
from small_graph import *
from goldens import relative_error
def sampled(result, *links):
    return [torch.cat([stream.flatten() for stream in parts(result.value(link[0]))]) for link in links]
def test_x(run):
    g=Graph(); l=g.sample(steps=12); g.show(l); e,=sampled(run(g),l)
    for node in ("EasyCache","LazyCache"):
        for th in (0.2,0.6,1.,2.,3.):
            for cfg in (4.0,):
                g=Graph(); m=g.add(node, model=g.model(), reuse_threshold=th,start_percent=0.15,end_percent=0.95,verbose=False)
                l=g.sample(g.add("CountForwards",model=m),steps=12,cfg=cfg); g.show(l); r=run(g); print(node,th,len(CountForwards.calls), relative_error(sampled(r,l)[0],e))
